"""Images by name, in memory."""

import contextlib
import dataclasses
import glob
import os

import numpy as np
from PIL import Image, ImageOps

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


def load(name="digits", split=None, size=None, data_dir=None, download=False):
    """Reads a whole dataset into memory.

    Transparent pixels turn white, 16 bits per channel turn into 8, and a
    photograph is turned upright as its EXIF data say. If all images are
    greyscale they have one channel, else three.

    Args:
        name: String. `"digits"` are scikit-learn's 1,797 handwritten digits,
            enlarged to 16 x 16; they need no network. An existing folder
            stands for all images below it, sorted by path, without hidden
            files; if all lie in sub-folders, those are the classes. Any
            other name is one of tensorflow-datasets.
        split: String, as tensorflow-datasets writes it, for instance
            `"train[:1000]"`. Digits and folders have `"train"` only. `None`
            stands for `"train"`, and for `"unlabelled"` in `"stl10"`.
        size: Int `N`: the central square of each image, resized to N x N by
            PIL's bicubic filter, or for `"stl10"` by its bilinear one. `None`
            stands for 16 in `"digits"`, which have 8 x 8 pixels, for 48 in
            `"stl10"`, whose images have 96 x 96, and leaves those of other
            datasets as they are.
        data_dir: String. Where tensorflow-datasets keeps its datasets.
            `None` stands for its own default.
        download: Boolean. Whether tensorflow-datasets may download and
            prepare what it does not find.

    Returns:
        An `Images`.

    Raises:
        ValueError: if there is no such dataset, if it has fewer than two
            images or images of several sizes, if a file is no image, or if
            files of tensorflow-datasets are missing or damaged.
    """
    name = os.fspath(name)
    if size is not None and size < 1:
        raise ValueError(
            f"`size` must be a positive integer. Received: size={size}"
        )
    folder = name != "digits" and os.path.isdir(name)
    # tensorflow-datasets takes a version too, as in "stl10:1.0.0".
    known = None if folder else name.partition(":")[0]
    defaults = _DEFAULTS.get(known, _DEFAULTS_OF_OTHERS)
    split = defaults[0] if split is None else split
    size = defaults[1] if size is None else size
    if not folder and name != "digits":
        items, num_classes = _tfds(name, split, data_dir, download)
    elif split != "train":
        raise ValueError(
            "Only tensorflow-datasets have splits; of a folder pass a "
            f"sub-folder. Received: split={split!r} with name={name!r}"
        )
    elif name == "digits":
        items, num_classes = _digits()
    else:
        items, num_classes = _folder(name)

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
    # tensorflow-datasets writes -1 where a label is missing, as in STL-10.
    if num_classes is None or min(labels) < 0:
        return Images(name, np.stack(arrays))
    return Images(
        name, np.stack(arrays), np.array(labels, "int32"), num_classes
    )


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


def _folder(path):
    files = files_below(path)
    images = (decode(os.path.join(path, file)) for file in files)
    tops = [os.path.dirname(file).split(os.sep)[0] for file in files]
    if not all(tops):  # A file outside of the sub-folders has no class.
        return zip(files, images, tops), None
    classes = sorted(set(tops))
    return zip(files, images, map(classes.index, tops)), len(classes)


def open_builder(
    name, data_dir, download, embedded="digits", example="cifar10"
):
    """The builder of a dataset of tensorflow-datasets, prepared.

    Args:
        name: String.
        data_dir: String, or `None` for the place that is usual.
        download: Boolean, whether it may be downloaded.
        embedded: String, what needs no dataset.
        example: String, a dataset of the kind that is wanted.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        ValueError: if there is no such dataset, or it is not prepared.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        # Its message goes on with the names of a thousand datasets.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f'There is no such dataset. Pass "{embedded}", the path of an '
            "existing folder of images, or a dataset of tensorflow-datasets "
            f'such as "{example}". Received: {name!r} ({reason})'
        ) from None
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise ValueError(
            "The dataset is not prepared. Pass `--data-dir` with the folder "
            "in which tensorflow-datasets prepared it, or `--download`. "
            f"Received: {name!r}, looked for in {str(builder.data_path)!r}"
        )
    return builder


def _tfds(name, split, data_dir, download):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = open_builder(name, data_dir, download)
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or image.dtype != np.uint8:
        raise ValueError(
            'The dataset has no 8-bit images called "image". Choose another '
            f"one. Received: {name!r} with {features}"
        )
    labelled = isinstance(label, tfds.features.ClassLabel)
    # Reading in batches is faster, but batches need images of one size.
    batch_size = 1 if None in image.shape else 256
    # By default small datasets are kept in memory once more, uncompressed.
    read_config = tfds.ReadConfig(try_autocache=False)
    try:
        dataset = builder.as_dataset(
            split=split, batch_size=batch_size, read_config=read_config
        )
    except ValueError as error:
        raise ValueError(
            f"The dataset has the splits {sorted(builder.info.splits)}. Pass "
            "one of them, or a part that is not empty, such as "
            f'"train[:1000]". Received: split={split!r} of {name!r} ({error})'
        ) from error

    def items():
        i = 0
        try:
            for examples in tfds.as_numpy(dataset):
                for j, array in enumerate(examples["image"]):
                    # PIL wants two dimensions where there is one channel.
                    array = array[..., 0] if array.shape[-1] == 1 else array
                    image = plain(Image.fromarray(array))
                    yield f"image {i}", image, labelled and examples["label"][j]
                    i += 1
        except tf.errors.OpError as error:
            # TensorFlow does not say in which file.
            damages = _damages(builder.info, split)
            if not damages:
                raise
            raise ValueError(
                "Files of the dataset are missing or damaged. Copy them anew, "
                "or delete the dataset's folder and pass `--download`. "
                f"Received: {name!r}, where {', and '.join(damages)}"
            ) from error

    return items(), label.num_classes if labelled else None


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
    """Brings a PIL image of any kind to mode "L" or "RGB"."""
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
