"""Label maps and photographs of scenes, for images from semantic labels."""

import dataclasses
import itertools
import os

import numpy as np
from PIL import Image, ImageFilter

from experiments import batches, data, label_maps
from keras_san.checks import check_count

# Of scikit-image's bundled images, the photographs in colour of what an eye
# sees, and not a second time.
_BUNDLED = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
_BUNDLED_CLASSES = 12

# Where a folder has splits, the sub-folders that may hold them.
_SPLITS = {"train": ("train",), "validation": ("val", "validation")}

# Cityscapes has classes 0 to 33, and licence plates, which it writes as 255.
_CITYSCAPES_CLASSES = 35


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """Photographs of one size and the classes of their pixels, in memory.

    Attributes:
        name: String, as it was given to `load`.
        names: List of strings, one a scene.
        images: uint8 array `(n, height, width, 3)`.
        labels: uint8 array `(n, height, width)` of values below `num_classes`.
        edges: uint8 array `(n, height, width)`, 1 where one instance of a
            class borders on another and else 0, or `None` if that is not
            known.
        num_classes: Int.
        palette: uint8 array `(num_classes, 3)`, the colours that classes are
            drawn with.
    """

    name: str
    names: list
    images: np.ndarray
    labels: np.ndarray
    edges: np.ndarray | None
    num_classes: int
    palette: np.ndarray

    def __len__(self):
        return len(self.names)

    def __getitem__(self, part):
        """The scenes of a slice."""
        return dataclasses.replace(
            self,
            names=self.names[part],
            images=self.images[part],
            labels=self.labels[part],
            edges=None if self.edges is None else self.edges[part],
        )

    @property
    def map_channels(self):
        """Int, the channels of `maps`."""
        return self.num_classes + (self.edges is not None)

    def maps(self, part=slice(None)):
        """Makes what a network sees of scenes: one-hot classes, and edges.

        Args:
            part: Slice, or int array of indices.

        Returns:
            uint8 array `(n, height, width, map_channels)` of 0 and 1, the
            edges as the last channel.
        """
        edges = None if self.edges is None else self.edges[part]
        return label_maps.one_hot(self.labels[part], self.num_classes, edges)

    def colours(self, part=slice(None)):
        """Draws labels: a uint8 array `(n, height, width, 3)`."""
        return self.palette[self.labels[part]]


def load(
    name="photographs",
    split="train",
    size=(96, 96),
    num_classes=None,
    data_dir=None,
    download=False,
    void=None,
):
    """Reads scenes into memory, each resized as soon as it is read.

    Images are resized by PIL's bicubic filter, labels by the nearest pixel.

    Args:
        name: String. `"photographs"` are windows of scikit-image's bundled
            photographs, whose classes are their main colours; they need no
            network. An existing folder has sub-folders `images` and `labels`
            of equal names but for the endings, and may have `instances`, of
            an id a pixel; or it has sub-folders `train` and `val` (or
            `validation`) with these. Any other name is one of
            tensorflow-datasets with images `image_left` and
            `segmentation_label`, as `"cityscapes"`.
        split: String, `"train"` or `"validation"`, or what else
            tensorflow-datasets knows. The right thirds of the bundled
            photographs are for validation, and of a folder without splits
            the last tenth of the sorted names.
        size: Tuple of ints `(height, width)`.
        num_classes: `None`, or an int from 2 to 256. `None` stands for 12 main
            colours, for the 35 classes of Cityscapes, and else for one more
            than the largest label of what is read: for validation pass the
            number that was found for training.
        data_dir: String. Where tensorflow-datasets keeps its datasets.
        download: Boolean. Whether tensorflow-datasets may download.
        void: `None`, or the label of pixels without a class, in a folder.
            They get one more class, the last one, which `num_classes` does
            not count.

    Returns:
        A `Scenes`.

    Raises:
        ValueError: if there are no such scenes, a file cannot be read or
            holds something else, those of a scene do not fit, or a label is
            not below `num_classes`.
    """
    name = os.fspath(name)
    _check_size(size)
    if num_classes is not None and not 2 <= num_classes <= 256:
        raise ValueError(
            "`num_classes` must be from 2 to 256, or `None`. Received: "
            f"num_classes={num_classes}"
        )
    if void is not None and not os.path.isdir(name):
        raise ValueError(
            "Only in a folder of your own pixels may have no class. "
            f"Received: void={void} with name={name!r}"
        )
    if name == "photographs":
        num_classes = num_classes or _BUNDLED_CLASSES
        found = _bundled(split, size, num_classes)
    elif os.path.isdir(name):
        found = _folder(name, split, num_classes, void)
    else:
        num_classes, found = _tfds(name, split, num_classes, data_dir, download)

    names, images, labels, ids, palette, highest = [], [], [], [], None, 0
    for scene in found:
        names.append(scene.name)
        image = scene.image.resize(size[::-1], Image.Resampling.BICUBIC)
        images.append(np.asarray(image))
        labels.append(label_maps.nearest(scene.labels, size))
        if scene.ids is not None:
            ids.append(label_maps.nearest(scene.ids, size))
        if palette is None:
            palette, painted = scene.palette, scene.name
        elif scene.palette is not None:
            _check_palettes(palette, painted, scene)
        known = scene.labels[scene.labels != label_maps.VOID]
        if void is None:
            known = scene.labels
        highest = max(highest, int(known.max(initial=0)))
    labels = np.stack(labels)
    if num_classes is None and not 0 < highest < label_maps.VOID:
        raise ValueError(
            "Labels must be of two classes at least, and 255 mostly stands for "
            "pixels without a class: then pass --void 255, else --classes "
            f"256. Received: {name!r} with labels from 0 to {highest}"
        )
    num_classes = num_classes or highest + 1
    if void is not None:
        labels[labels == label_maps.VOID] = num_classes
        num_classes += 1
    return Scenes(
        name,
        names,
        np.stack(images),
        labels,
        label_maps.instance_edges(np.stack(ids)) if ids else None,
        num_classes,
        label_maps.complete(palette, num_classes),
    )


@dataclasses.dataclass(frozen=True)
class _Scene:
    """A scene of any size.

    Attributes:
        name: String.
        image: PIL image of mode "RGB".
        labels: uint8 array `(height, width)`.
        ids: int32 array `(height, width)`, or `None`.
        palette: uint8 array `(colours, 3)`, or `None`.
    """

    name: str
    image: Image.Image
    labels: np.ndarray
    ids: np.ndarray | None = None
    palette: np.ndarray | None = None


def _check_palettes(palette, name, scene):
    """Raises a `ValueError` if a class has another colour in a scene."""
    used = [n for n in np.unique(scene.labels) if n != label_maps.VOID]
    for n in used:
        colours = [
            tuple(p[n].tolist()) for p in (palette, scene.palette) if n < len(p)
        ]
        if len({*colours}) > 1:
            raise ValueError(
                "A number has different colours in the palettes of two label "
                "maps, so it seems not to stand for one class. `python -m "
                "experiments.image_translation number FOLDER` makes label maps "
                "of equal numbers from colours. Received: "
                f"{n} as {colours[0]} in {name!r} and {colours[1]} in "
                f"{scene.name!r}"
            )


def _check_size(size):
    try:
        height, width = size
        check_count("height", height)
        check_count("width", width)
    except (TypeError, ValueError):
        raise ValueError(
            "`size` must be two ints >= 1, the height and the width. "
            f"Received: size={size!r}"
        ) from None


def _check_split(split):
    if split not in _SPLITS:
        raise ValueError(
            f"`split` must be one of {[*_SPLITS]}. Received: split={split!r}"
        )


# Each source yields a `_Scene` after the other.


def _bundled(split, size, num_classes):
    import skimage

    _check_split(split)
    height, width = size
    images = {
        os.path.splitext(file)[0]: data.decode(
            os.path.join(skimage.data_dir, file)
        )
        for file in _BUNDLED
    }
    colours, palette = _main_colours(images.values(), num_classes)
    windows = []
    for i, (name, image) in enumerate(images.items()):
        scale = max(3 * height / image.height, 3 * width / image.width)
        image = _scaled(image, scale)
        # Cut before its labels are smoothed: training sees nothing of what
        # is held out.
        cut = image.width - image.width // 3
        start, stop = (0, cut) if split == "train" else (cut, image.width)
        image = image.crop((start, 0, stop, image.height))
        labels = _label(image, colours, height)
        parts = 2 if split == "train" else 1
        corners = itertools.product(
            range(0, image.height - height + 1, max(1, height // parts)),
            range(0, image.width - width + 1, max(1, width // parts)),
        )
        for n, (y, x) in enumerate(corners):
            scene = _Scene(
                f"{name}_{y:04d}_{start + x:04d}",
                image.crop((x, y, x + width, y + height)),
                labels[y : y + height, x : x + width],
                palette=palette,
            )
            windows.append((n, i, scene))
    # In turns, so that the first few are of several photographs.
    for *_, scene in sorted(windows, key=lambda window: window[:2]):
        yield scene


def _scaled(image, scale):
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC)


def _main_colours(images, count):
    """The main colours of all images: a paletted Lab image, and as RGB."""
    # From images of a fixed height: at any size of the windows the classes
    # are the same. In integers, unlike scikit-learn's k-means, whose threads
    # add up floats in any order.
    strip = np.concatenate(
        [np.asarray(_scaled(image, 96 / image.height)) for image in images], 1
    )
    colours = _lab(strip).quantize(
        count, method=Image.Quantize.MEDIANCUT, kmeans=10
    )
    classes = np.asarray(colours).ravel()
    sizes = np.maximum(np.bincount(classes, minlength=count), 1)
    means = [
        np.bincount(classes, channel.ravel(), count) / sizes
        for channel in np.moveaxis(strip, -1, 0)
    ]
    return colours, np.rint(np.stack(means, 1)).astype("uint8")


def _label(image, colours, height):
    """The classes of a photograph's pixels."""
    # Details of this share of a window's height, or smaller, are no regions.
    image = image.filter(ImageFilter.GaussianBlur(height / 48))
    nearest = _lab(np.asarray(image)).quantize(
        palette=colours, dither=Image.Dither.NONE
    )
    # Where the blur is wide it leaves little to do, and this takes long.
    smooth = ImageFilter.ModeFilter(2 * min(height // 24, 4) + 1)
    return np.asarray(Image.fromarray(np.asarray(nearest)).filter(smooth))


def _lab(image):
    """Lab in 8 bits, as a PIL image that takes itself for RGB."""
    from skimage import color

    # By its distances in RGB a dark red or blue would count as black.
    lab = color.rgb2lab(image) + [0.0, 128.0, 128.0]
    return Image.fromarray(np.rint(np.clip(lab, 0, 255)).astype("uint8"))


def _folder(path, split, num_classes, void):
    _check_split(split)
    top = _top(path, split)
    files = {
        kind: data.by_name(os.path.join(top, kind))
        for kind in ("images", "labels", "instances")
        if kind != "instances" or os.path.isdir(os.path.join(top, kind))
    }
    for kind in [*files][1:]:
        odd = sorted({*files["images"]} ^ {*files[kind]})
        if odd:
            where = kind if odd[0] in files["images"] else "images"
            raise ValueError(
                f"`images` and `{kind}` must have the same names but for the "
                f"endings. Received: {len(odd)} without the other, the first "
                f"of them {odd[0]!r}, which is not in "
                f"{os.path.join(top, where)!r}"
            )
    names = sorted(files["images"])
    if top == path:
        if len(names) == 1:
            raise ValueError(
                "A folder without splits must have at least two scenes, one "
                f"of them for validation. Received: {path!r} with one"
            )
        held_out = max(1, len(names) // 10)
        part = slice(None, -held_out), slice(-held_out, None)
        names = names[part[split == "validation"]]
    for name in names:
        paths = {kind: files[kind][name] for kind in files}
        yield _read(name, paths, num_classes, void)


def _top(path, split):
    """The folder in which the sub-folders of a split are."""
    tops = [path, *(os.path.join(path, name) for name in _SPLITS[split])]
    for top in tops:
        kinds = os.path.join(top, "images"), os.path.join(top, "labels")
        if all(os.path.isdir(kind) for kind in kinds):
            return top
    raise ValueError(
        "The folder must have sub-folders `images` and `labels`, or `train` "
        "and `val` (or `validation`) which have these. Received: "
        f"split={split!r} of {path!r}"
    )


def _read(name, files, num_classes, void):
    """Reads the files of a scene."""
    image = data.decode(files["images"]).convert("RGB")
    labels, palette = label_maps.read(files["labels"], num_classes, void)
    ids = None
    if "instances" in files:
        ids, _ = label_maps.read_numbers(files["instances"], "instance")
    for kind, numbers in (("labels", labels), ("instances", ids)):
        if numbers is not None and numbers.shape != image.size[::-1]:
            raise ValueError(
                "The files of a scene must have the same size. Received: "
                f"{files['images']!r} with {image.width} x {image.height} "
                f"pixels and {files[kind]!r} with {numbers.shape[1]} x "
                f"{numbers.shape[0]}"
            )
    return _Scene(name, image, labels, ids, palette)


def _tfds(name, split, num_classes, data_dir, download):
    import tensorflow_datasets as tfds

    builder = data.open_builder(
        name, data_dir, download, "photographs", "cityscapes"
    )
    features = dict(builder.info.features.items())
    for key, channels in (("image_left", 3), ("segmentation_label", 1)):
        feature = features.get(key)
        if (
            not isinstance(feature, tfds.features.Image)
            or feature.np_dtype != np.uint8
            or feature.shape[-1] != channels
        ):
            raise ValueError(
                "The dataset must have 8-bit images `image_left`, of 3 "
                "channels, and `segmentation_label`, of 1 channel. Take one "
                f'such as "cityscapes". Received: {name!r} with {features}'
            )
    read_config = tfds.ReadConfig(try_autocache=False)
    try:
        dataset = builder.as_dataset(split=split, read_config=read_config)
    except ValueError as error:
        raise ValueError(
            f"The dataset has the splits {sorted(builder.info.splits)}. "
            f"Received: split={split!r} of {name!r} ({error})"
        ) from error
    cityscapes = builder.name == "cityscapes"
    if cityscapes and num_classes is None:
        num_classes = _CITYSCAPES_CLASSES

    def scenes():
        for index, example in enumerate(tfds.as_numpy(dataset)):
            labels = example["segmentation_label"][..., 0]
            if cityscapes:
                labels = np.minimum(labels, np.uint8(_CITYSCAPES_CLASSES - 1))
            image = Image.fromarray(example["image_left"])
            where = f"scene {index} of {split!r} of {name!r}"
            if image.size != labels.shape[::-1]:
                raise ValueError(
                    "The image and the labels of a scene must have the same "
                    f"size. Received: {where} with {image.width} x "
                    f"{image.height} and {labels.shape[1]} x "
                    f"{labels.shape[0]} pixels"
                )
            labels = label_maps.check(labels, num_classes, None, where)
            yield _Scene(f"{split}_{index:04d}", image, labels)

    return num_classes, scenes()


def make_batches(scenes, batch_size, seed=0):
    """Batches of label maps and images, about half of them mirrored.

    Args:
        scenes: A `Scenes`.
        batch_size: Int.
        seed: Int.

    Returns:
        A `batches.Batches` of pairs `(maps, images)`: uint8 of 0 and 1
        `(batch_size, height, width, map_channels)`, see `Scenes.maps`, and
        float32 `(batch_size, height, width, 3)` in [-1, 1].
    """

    def prepare(images, labels, edges=None):
        maps = label_maps.one_hot(labels, scenes.num_classes, edges)
        return maps, batches.to_float(images)

    arrays = [scenes.images, scenes.labels]
    if scenes.edges is not None:
        arrays.append(scenes.edges)
    return batches.Batches(arrays, batch_size, seed, True, prepare)
