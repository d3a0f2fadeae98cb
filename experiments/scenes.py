"""Label maps and photographs of scenes, for images from semantic labels."""

import collections
import dataclasses
import itertools
import os

import numpy as np
from PIL import Image, ImageFilter

from experiments import batches, data, label_maps

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

# Arrays of any size, of which `ids` and `palette` may be `None`. Errors tell
# `where` they are from.
_Scene = collections.namedtuple("_Scene", "where image labels ids palette")


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """Photographs of one size and the classes of their pixels, in memory.

    Attributes:
        images: uint8 array `(n, height, width, 3)`.
        labels: uint8 array `(n, height, width)` of values below `num_classes`.
        edges: uint8 array of that shape, 1 where one instance of a class
            borders on another, else 0; or `None`.
        num_classes: Int.
        palette: uint8 array `(num_classes, 3)`, the colours of classes.
    """

    images: np.ndarray
    labels: np.ndarray
    edges: np.ndarray | None
    num_classes: int
    palette: np.ndarray

    def __len__(self):
        return len(self.images)

    def __getitem__(self, part):
        """The scenes of a slice."""
        return dataclasses.replace(
            self,
            images=self.images[part],
            labels=self.labels[part],
            edges=None if self.edges is None else self.edges[part],
        )

    @property
    def map_channels(self):
        """Int, the channels of `maps`."""
        return self.num_classes + (self.edges is not None)

    def maps(self):
        """Makes the input of a network, see `label_maps.one_hot`."""
        return label_maps.one_hot(self.labels, self.num_classes, self.edges)


def load(
    name="photographs",
    split="train",
    size=(96, 96),
    num_classes=None,
    void=None,
    data_dir=None,
    download=False,
):
    """Reads scenes into memory, resized to `(height, width)`.

    `"photographs"` are windows of scikit-image's, of which the right thirds are
    for validation, and whose classes are their main colours. A folder has
    sub-folders `images` and `labels` of equal names but for the endings, and
    may have `instances`, of an id a pixel; the last tenth of the names is for
    validation. Or it has `train` and `val` (or `validation`) with these.
    Others are of tensorflow-datasets, with `image_left` and
    `segmentation_label`, as `"cityscapes"`.

    By default there are 12 main colours, the 35 classes of Cityscapes, and
    else one more than the largest label: for validation pass what was found
    for training. Pixels of the number `void`, in a folder, get one more class,
    the last one, which `num_classes` does not count.
    """
    kind = data.source(name, "photographs")
    if num_classes is not None and not 2 <= num_classes <= 256:
        raise ValueError(
            "There must be from 2 to 256 classes. Received: --classes "
            f"{num_classes}"
        )
    if void is not None and kind != "folder":
        raise ValueError(
            "Only in a folder of your own pixels may have no class. "
            f"Received: --void {void} with --data {name}"
        )
    if kind == "own":
        num_classes = num_classes or _BUNDLED_CLASSES
        found = _bundled(split, size, num_classes)
    elif kind == "folder":
        found = _folder(name, split)
    else:
        num_classes, found = _tfds(name, split, num_classes, data_dir, download)

    images, labels, ids, painted, highest = [], [], [], None, 0
    for scene in found:
        label_maps.check_sizes(
            scene.where,
            image=scene.image,
            labels=scene.labels,
            instances=scene.ids,
        )
        numbers = label_maps.check(scene.labels, num_classes, void, scene.where)
        image = Image.fromarray(scene.image)
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
        images.append(np.asarray(image))
        labels.append(label_maps.nearest(numbers, size))
        if scene.ids is not None:
            ids.append(label_maps.nearest(scene.ids, size))
        if scene.palette is not None:
            painted = painted or scene
            _check_palettes(painted, scene, numbers)
        known = scene.labels[scene.labels != void]
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
        np.stack(images),
        labels,
        label_maps.instance_edges(np.stack(ids)) if ids else None,
        num_classes,
        label_maps.complete(painted and painted.palette, num_classes),
    )


def _check_palettes(first, scene, labels):
    """Raises a `ValueError` if a class has another colour in a scene."""
    one, other = first.palette, scene.palette
    for n in np.unique(labels[labels != label_maps.VOID]):
        if n < min(len(one), len(other)) and np.any(one[n] != other[n]):
            raise ValueError(
                "A number has different colours in the palettes of two label "
                "maps, so it seems not to stand for one class. `python -m "
                "experiments.image_translation number FOLDER` makes label maps "
                f"of equal numbers from colours. Received: {n} as "
                f"{tuple(one[n].tolist())} in {first.where!r} and "
                f"{tuple(other[n].tolist())} in {scene.where!r}"
            )


# Each source yields a `_Scene` after the other.


def _bundled(split, size, num_classes):
    import skimage

    height, width = size
    images = [data.decode(os.path.join(skimage.data_dir, x)) for x in _BUNDLED]
    colours, palette = _main_colours(images, num_classes)
    windows = []
    for name, image in zip(_BUNDLED, images):
        scale = max(3 * height / image.height, 3 * width / image.width)
        image = _scaled(image, scale)
        # Cut before its labels are smoothed: training sees nothing of what
        # is held out.
        cut = image.width - image.width // 3
        start, stop = (0, cut) if split == "train" else (cut, image.width)
        image = image.crop((start, 0, stop, image.height))
        labels, image = _label(image, colours, height), np.asarray(image)
        parts = 2 if split == "train" else 1
        places = [
            (slice(y, y + height), slice(x, x + width))
            for y in range(0, len(image) - height + 1, max(1, height // parts))
            for x in range(0, stop - start - width + 1, max(1, width // parts))
        ]
        windows.append(
            [_Scene(name, image[x], labels[x], None, palette) for x in places]
        )
    # In turns, so that the first few are of several photographs.
    turns = itertools.chain(*itertools.zip_longest(*windows))
    return [window for window in turns if window is not None]


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


def _folder(path, split):
    tops = [path, *(os.path.join(path, name) for name in _SPLITS[split])]
    for top in tops:
        folders = {
            kind: os.path.join(top, kind)
            for kind in ("images", "labels", "instances")
            if os.path.isdir(os.path.join(top, kind))
        }
        if {"images", "labels"} <= {*folders}:
            break
    else:
        raise ValueError(
            "The folder must have sub-folders `images` and `labels`, or "
            "`train` and `val` (or `validation`) which have these. Received: "
            f"no {split} split in {path!r}"
        )
    scenes = data.matching(folders)
    if top == path:
        if len(scenes) == 1:
            raise ValueError(
                "A folder without splits must have at least two scenes, one "
                f"of them for validation. Received: {path!r} with one"
            )
        last = max(1, len(scenes) // 10)
        scenes = scenes[:-last] if split == "train" else scenes[-last:]
    for _, files in scenes:
        image = np.asarray(data.decode(files["images"]).convert("RGB"))
        labels, palette = label_maps.read_numbers(files["labels"], "class")
        ids = files.get("instances")
        ids = ids and label_maps.read_numbers(ids, "instance")[0]
        yield _Scene(files["labels"], image, labels, ids, palette)


def _tfds(name, split, num_classes, data_dir, download):
    wanted = {"image_left": 3, "segmentation_label": 1}
    info, examples = data.read_tfds(
        *(name, split, wanted, data_dir, download, "photographs", "cityscapes")
    )
    if info.name == "cityscapes":
        num_classes = num_classes or _CITYSCAPES_CLASSES

    def scenes():
        for index, example in enumerate(examples):
            image, labels = (example[key] for key in wanted)
            if info.name == "cityscapes":
                labels = np.minimum(labels, np.uint8(_CITYSCAPES_CLASSES - 1))
            where = f"scene {index} of {split!r} of {name!r}"
            yield _Scene(where, image, labels[..., 0], None, None)

    return num_classes, scenes()


def make_batches(scenes, batch_size, seed=0):
    """The `batches.Batches` of label maps and images, half of them mirrored."""

    def prepare(images, labels, edges=None):
        maps = label_maps.one_hot(labels, scenes.num_classes, edges)
        return maps, batches.to_float(images)

    arrays = [scenes.images, scenes.labels]
    if scenes.edges is not None:
        arrays.append(scenes.edges)
    return batches.Batches(arrays, batch_size, seed, True, prepare)
