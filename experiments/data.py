"""Images by name, in memory."""

import contextlib
import dataclasses
import glob
import os

import keras
import numpy as np
from PIL import Image, ImageOps

from keras_san.checks import check_count

# The split and the size that are read where none is asked for, and the filter
# by which images are resized. For STL-10 all three are those of mimicry.
_DEFAULTS = {
    "digits": ("train", 16, Image.Resampling.BICUBIC),
    "stl10": ("unlabelled", 48, Image.Resampling.BILINEAR),
}
_DEFAULTS_OF_OTHERS = ("train", None, Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A dataset that lies in memory.

    Attributes:
        name: String, as it was given to `load`.
        images: uint8 array `(n, height, width, channels)`, 1 or 3 channels.
        labels: int32 array `(n,)`, or `None` if the images have no labels.
        num_classes: Int, or `None` if the images have no labels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    num_classes: int | None = None

    def __len__(self):
        return len(self.images)

    def take(self, chosen):
        """The images of these numbers."""
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(
            self, images=self.images[chosen], labels=labels
        )


def load(name="digits", split=None, size=None, data_dir=None, download=False):
    """Reads a whole dataset into memory.

    Images are decoded as `plain` says. If all are greyscale they have one
    channel, else three.

    Args:
        name: String. `"digits"` are scikit-learn's, enlarged. An existing
            folder stands for all images below it; if all lie in sub-folders,
            those are the classes. Any other name is one of
            tensorflow-datasets.
        split: String, as tensorflow-datasets writes it.
        size: Int, to which the central square of each image is resized, or
            `None` for a size that is usual, see `_DEFAULTS`.
        data_dir: As of `read_tfds`.
        download: As of `read_tfds`.

    Returns:
        An `Images`.

    Raises:
        ValueError: if there is no such dataset, if it has fewer than two
            images or images of several sizes, if a file is no image, or if
            files of tensorflow-datasets are missing or damaged.
    """
    name = os.fspath(name)
    if size is not None:
        check_count("size", size)
    kind = source(name, "digits")
    # tensorflow-datasets takes a version too, as in "stl10:1.0.0".
    known = "" if kind == "folder" else name.partition(":")[0]
    defaults = _DEFAULTS.get(known, _DEFAULTS_OF_OTHERS)
    split, size = split or defaults[0], size or defaults[1]
    if kind == "tfds":
        items, num_classes = _tfds(name, split, data_dir, download)
    elif split != "train":
        raise ValueError(
            "Only tensorflow-datasets have splits; of a folder pass a "
            f"sub-folder. Received: split={split!r} with name={name!r}"
        )
    else:
        items, num_classes = _folder(name) if kind == "folder" else _digits()

    arrays, labels, first = [], [], None
    for where, image, label in items:
        if size:
            image = ImageOps.fit(image, (size, size), defaults[2])
        found = f"{image.width} x {image.height}"
        first = first or (where, found)
        if found != first[1]:
            raise ValueError(
                "All images must have one size. Pass `--size N` to crop and "
                f"resize them to N x N. Received: name={name!r}, where "
                f"{first[0]} has {first[1]} pixels and {where} has {found}"
            )
        arrays.append(np.atleast_3d(np.asarray(image)))
        labels.append(label)
    if len(arrays) < 2:
        raise ValueError(
            "A dataset must have at least two images. Add images or choose "
            f"another one. Received: name={name!r}, split={split!r}, where "
            f"the number of images is {len(arrays)}"
        )
    # Greyscale among colours: the same value in all three channels.
    channels = max(array.shape[2] for array in arrays)
    arrays = [np.broadcast_to(a, a.shape[:2] + (channels,)) for a in arrays]
    images = Images(name, np.stack(arrays))
    # tensorflow-datasets writes -1 where a label is missing, as in STL-10.
    if num_classes is None or min(labels) < 0:
        return images
    labels = np.array(labels, "int32")
    return dataclasses.replace(images, labels=labels, num_classes=num_classes)


def source(name, own):
    """Where data of a name come from: `"own"`, `"folder"` or `"tfds"`."""
    if name == own:
        return "own"
    return "folder" if os.path.isdir(name) else "tfds"


# Each source returns its images as tuples `(where, PIL image, label)`, one by
# one, and the number of classes or `None`.


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    arrays = np.rint(digits.images * 255 / 16).astype("uint8")
    # Strokes begin in the first row and end in the last: without a margin,
    # enlarging would cut them off.
    images = (ImageOps.expand(Image.fromarray(array), 1) for array in arrays)
    where = (f"digit {i}" for i in range(len(arrays)))
    return zip(where, images, digits.target), 10


def files_below(path):
    """The files below a folder, sorted, without hidden ones."""
    files = sorted(
        file
        for file in glob.glob("**/*", root_dir=path, recursive=True)
        if os.path.isfile(os.path.join(path, file))
    )
    if not files:
        raise ValueError(
            "The folder holds no images. Pass one with images in it or in "
            f"its sub-folders. Received: {path!r}"
        )
    return files


def by_name(folder):
    """The files below a folder, by their names without ending, sorted."""
    files = {}
    for file in files_below(folder):
        name = os.path.splitext(file)[0]
        path = os.path.join(folder, file)
        if name in files:
            raise ValueError(
                "Two files of a folder must not have the same name but for "
                f"the ending. Received: {files[name]!r} and {path!r}"
            )
        files[name] = path
    return dict(sorted(files.items()))


def matching(folders):
    """The files of folders that have the same names but for the endings.

    Args:
        folders: Dict from kinds to folders.

    Returns:
        A list of pairs: a name, and the dict from kinds to its files.

    Raises:
        ValueError: if a name is missing in one of them.
    """
    files = {kind: by_name(folder) for kind, folder in folders.items()}
    every = set().union(*files.values())
    for kind, folder in folders.items():
        missing = sorted(every - {*files[kind]})
        if missing:
            raise ValueError(
                "Files that belong together must have the same names but for "
                f"the endings. Received: {len(missing)} without another one, "
                f"the first of them {missing[0]!r}, which is not in {folder!r}"
            )
    return [
        (name, {kind: files[kind][name] for kind in folders})
        for name in sorted(every)
    ]


def _folder(path):
    files = files_below(path)
    images = (decode(os.path.join(path, file)) for file in files)
    tops = [os.path.dirname(file).split(os.sep)[0] for file in files]
    if not all(tops):  # A file outside of the sub-folders has no class.
        return zip(files, images, tops), None
    classes = sorted(set(tops))
    return zip(files, images, map(classes.index, tops)), len(classes)


def read_tfds(
    name,
    split,
    wanted,
    data_dir=None,
    download=False,
    own="digits",
    example="cifar10",
    decode=True,
):
    """Reads a dataset of tensorflow-datasets, one example after the other.

    Args:
        name: String.
        split: String, as tensorflow-datasets writes it.
        wanted: Dict from the names of the images that it must have to their
            numbers of channels, or `None` for any.
        data_dir: String, or `None` for the place that is usual.
        download: Boolean, whether it may be downloaded and prepared.
        own: String, what needs no dataset.
        example: String, a dataset of the kind that is wanted.
        decode: Boolean, whether images are arrays, not bytes of files.

    Returns:
        A `tfds.core.DatasetInfo`, and an iterator of dicts of NumPy arrays.

    Raises:
        ValueError: if there is no such dataset or split, if it is not
            prepared, or of another kind; from the iterator, if files are
            missing or damaged.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        # Its message goes on with the names of a thousand datasets.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f'There is no such dataset. Pass "{own}", the path of an existing '
            "folder of images, or a dataset of tensorflow-datasets such as "
            f'"{example}". Received: {name!r} ({reason})'
        ) from None
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise ValueError(
            "The dataset is not prepared. Pass `--data-dir` with the folder "
            "in which tensorflow-datasets prepared it, or `--download`. "
            f"Received: {name!r}, looked for in {str(builder.data_path)!r}"
        )
    info = builder.info
    features = dict(info.features.items())
    images = [features.get(key) for key in wanted]
    for image, channels in zip(images, wanted.values()):
        if (
            not isinstance(image, tfds.features.Image)
            or image.np_dtype != np.uint8
            or channels not in (None, image.shape[-1])
        ):
            listed = " and ".join(
                f"`{key}`" + f" of {channels} channels" * (channels is not None)
                for key, channels in wanted.items()
            )
            raise ValueError(
                f"The dataset must have 8-bit images {listed}. Take one such "
                f'as "{example}". Received: {name!r} with {features}'
            )
    # Reading in batches is faster, but batches need images of one size.
    pixels = [
        np.prod(image.shape) for image in images if None not in image.shape
    ]
    static = decode and len(pixels) == len(images)
    batch_size = int(max(1, min(256, 1e6 // sum(pixels)))) if static else 1
    try:
        dataset = builder.as_dataset(
            split=split,
            batch_size=batch_size,
            # By default small datasets are kept in memory once more.
            read_config=tfds.ReadConfig(try_autocache=False),
            decoders=(
                None
                if decode
                else dict.fromkeys(wanted, tfds.decode.SkipDecoding())
            ),
        )
    except ValueError as error:
        raise ValueError(
            f"The dataset has the splits {sorted(info.splits)}. Pass one of "
            'them, or a part that is not empty, such as "train[:1000]". '
            f"Received: split={split!r} of {name!r} ({error})"
        ) from error

    def examples():
        try:
            for batch in tfds.as_numpy(dataset):
                for i in range(len(batch[next(iter(wanted))])):
                    yield keras.tree.map_structure(lambda x: x[i], batch)
        except tf.errors.OpError as error:
            # TensorFlow does not say in which file.
            damages = _damages(info, split)
            if not damages:
                raise
            raise ValueError(
                "Files of the dataset are missing or damaged. Copy them anew, "
                "or delete the dataset's folder and pass `--download`. "
                f"Received: {name!r}, where {', and '.join(damages)}"
            ) from error

    return info, examples()


def _tfds(name, split, data_dir, download):
    info, examples = read_tfds(name, split, {"image": None}, data_dir, download)
    label = dict(info.features.items()).get("label")
    num_classes = getattr(label, "num_classes", None)
    items = (
        (f"image {i}", plain_array(x["image"]), num_classes and x["label"])
        for i, x in enumerate(examples)
    )
    return items, num_classes


def plain_array(array):
    """A PIL image as of `plain` of an array `(height, width, channels)`."""
    # PIL wants two dimensions where there is one channel.
    return plain(
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    )


def _damages(info, split):
    """Lists in words what is wrong with the files of a split."""
    import tensorflow as tf

    damages = []
    for file in info.splits[split].file_instructions:
        records = tf.data.TFRecordDataset(file.filename)
        count = 0
        try:
            for _ in records.map(info.features.deserialize_example):
                count += 1
        except tf.errors.OpError as error:
            damages.append(
                f"image {count} of {file.filename!r} cannot be read "
                f"({type(error).__name__})"
            )
        else:
            if count != file.examples_in_shard:
                damages.append(
                    f"{file.filename!r} has {count} images and should have "
                    f"{file.examples_in_shard}"
                )
    return damages


def decode(path):
    """Reads an image file, upright, as a PIL image of mode "L" or "RGB"."""
    with reading(path), Image.open(path) as image:
        return plain(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def reading(path):
    """Raises a `ValueError` that names the file, whatever PIL raises."""
    try:
        yield
    # A broken file makes PIL raise nearly anything, even SyntaxError.
    except Exception as error:
        raise ValueError(
            "The file cannot be read as an image. Repair it or move it out of "
            f"the folder. Received: {path!r} ({error})"
        ) from error


def plain(image):
    """Brings a PIL image of any kind to mode "L" or "RGB".

    Transparent pixels turn white, and 16 bits per channel into 8.
    """
    low, high = image.getextrema() if image.mode in ("I", "F") else (0, 0)
    if image.mode == "F" or low < 0 or high > 65535:
        raise ValueError("its range is not known, save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # PIL would clip 16 bits, not scale them.
        array = (np.asarray(image).astype("int64") + 128) // 257
        image = Image.fromarray(array.astype("uint8"))
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if grey else "RGB")
