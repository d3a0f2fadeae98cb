"""Label maps as image files: numbers, colours, and edges of instances."""

import colorsys
import os

import numpy as np
from PIL import Image, ImageOps

from experiments import data, files

# What stands for a pixel without a class, until the classes are counted.
VOID = 255


_ADVICE = (
    "Pass more classes by --classes, or, where it marks pixels without a "
    "class, pass it by --void."
)


def read(path, num_classes=None, void=None, advice=_ADVICE):
    """Reads a label map: an image file of one number a pixel, its class.

    Args:
        path: String. Of a paletted image the numbers are the indices, not
            what they look like.
        num_classes: Int, or `None` for as many as can be.
        void: `None`, or the number of pixels without a class.
        advice: String, for errors: what to do about other numbers.

    Returns:
        A uint8 array `(height, width)` of values below `num_classes`, or
        `VOID`; and the palette, uint8 `(colours, 3)`, or `None`.

    Raises:
        ValueError: if the file cannot be read, is a JPEG file, has colours,
            or has a number that is no class.
    """
    path = os.fspath(path)
    numbers, palette = read_numbers(path, "class")
    return check(numbers, num_classes, void, path, advice), palette


def check(numbers, num_classes, void, where, advice=_ADVICE):
    """The numbers of pixels as labels, see `read`, or a `ValueError`."""
    least_void = 256 if void is None else VOID
    num_classes = min(num_classes or least_void, least_void)
    # Of no void all are known.
    known = numbers[numbers != void]
    for value in (known.min(), known.max()) if known.size else ():
        if not 0 <= value < num_classes:
            raise ValueError(
                "The labels of pixels must be at least 0 and below the number "
                f"of classes, {num_classes}. {advice} "
                f"Received: the label {value} in {where!r}"
            )
    return np.where(numbers == void, VOID, numbers).astype("uint8")


def one_hot(labels, num_classes, edges=None):
    """Makes the channels that a network sees: classes, and edges.

    Args:
        labels: uint8 array `(..., height, width)`.
        num_classes: Int.
        edges: uint8 array of that shape, or `None`.

    Returns:
        uint8 array `(..., height, width, channels)` of 0 and 1.
    """
    channels = num_classes + (edges is not None)
    maps = np.empty((*labels.shape, channels), "uint8")
    classes = np.arange(num_classes, dtype="uint8")
    maps[..., :num_classes] = labels[..., None] == classes
    if edges is not None:
        maps[..., -1] = edges
    return maps


def read_maps(path, size, num_classes, void=None, instances=None, name=None):
    """Makes the channels that a network sees of one label map.

    Args:
        path: String, the label map.
        size: Tuple of ints `(height, width)`, to which it is resized by the
            nearest pixel.
        num_classes: Int, with that of pixels without a class if there is one.
        void: As of `read`.
        instances: `None`, or a folder with ids of instances under the same
            name.
        name: String, its name there, by default that of the file, without
            ending.

    Returns:
        uint8 array `(height, width, channels)`, see `one_hot`.

    Raises:
        ValueError: as of `read`, and if the ids are missing, or of another
            size.
    """
    classes = num_classes - (void is not None)
    without = "" if void is None else f", and {void} for pixels without one"
    advice = f"The network was trained on {classes} classes{without}."
    labels, _ = read(path, classes, void, advice)
    labels[labels == VOID] = num_classes - 1
    edges = None
    if instances is not None:
        name = name or os.path.splitext(os.path.basename(path))[0]
        file = data.by_name(instances).get(name)
        if file is None:
            raise ValueError(
                "Each label map needs ids of its instances. Received: "
                f"{path!r}, without {name!r} in {instances!r}"
            )
        ids, _ = read_numbers(file, "instance")
        if ids.shape != labels.shape:
            raise ValueError(
                "A label map and its ids must have the same size. Received: "
                f"{path!r} with {labels.shape[1]} x {labels.shape[0]} pixels, "
                f"{file!r} with {ids.shape[1]} x {ids.shape[0]}"
            )
        edges = instance_edges(nearest(ids, size))
    return one_hot(nearest(labels, size), num_classes, edges)


def nearest(numbers, size):
    """Resizes an array of numbers to `(height, width)`."""
    image = Image.fromarray(numbers)
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))


def read_numbers(path, what):
    """Reads one number a pixel.

    Args:
        path: String.
        what: String, for errors: what a number stands for.

    Returns:
        An int32 array `(height, width)`, and the palette, uint8 `(colours,
        3)`, or `None`.

    Raises:
        ValueError: as of `read`.
    """
    image = _read_lossless(path)
    numbers, bands = np.asarray(image), image.getbands()
    if numbers.dtype.kind == "f":
        raise ValueError(
            f"The image has fractions where each pixel should hold the number "
            f"of its {what}. Save it with 8 or 16 bits. Received: {path!r}"
        )
    if numbers.ndim == 3:
        channels = numbers[..., : len(bands) - (bands[-1] == "A")]
        if np.any(channels != numbers[..., :1]):
            raise ValueError(
                "The image has colours where each pixel should hold the "
                f"number of its {what}. `python -m "
                "experiments.image_translation number FOLDER` makes label maps "
                "of numbers from colours. "
                f"Received: {path!r}"
            )
        numbers = numbers[..., 0]
    palette = _palette(image) if image.mode == "P" else None
    return numbers.astype("int32"), palette


def _read_lossless(path):
    """Reads an image file, upright, as a PIL image of any mode."""
    with data.reading(path), Image.open(path) as file:
        image, kind = ImageOps.exif_transpose(file), file.format
    if kind in ("JPEG", "MPO"):
        raise ValueError(
            "A label map must not be a JPEG file, which keeps numbers and "
            "colours only nearly. Pass what it was made from, as PNG. "
            f"Received: {path!r}"
        )
    return image


def instance_edges(ids):
    """Marks where the things of an image border on each other.

    Args:
        ids: Int array `(..., height, width)`, which thing a pixel belongs to.

    Returns:
        uint8 array of that shape, 1 where one of the four neighbours has
        another id, else 0. Beyond its borders an image has no neighbours.
    """
    edges = np.zeros(ids.shape, "uint8")
    across = ids[..., :, 1:] != ids[..., :, :-1]
    edges[..., :, 1:] |= across
    edges[..., :, :-1] |= across
    down = ids[..., 1:, :] != ids[..., :-1, :]
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    return edges


def complete(palette, num_classes):
    """A colour for each class, where the palette has none a distinct one.

    Args:
        palette: uint8 array `(n, 3)`, or `None`.
        num_classes: Int.

    Returns:
        uint8 array `(num_classes, 3)`.
    """
    palette = np.zeros((0, 3), "uint8") if palette is None else palette
    # Steps by the golden ratio never come back to the same hue, and those
    # that come near differ in brightness.
    made = [
        colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.8, (1.0, 0.75, 0.5)[i % 3])
        for i in range(len(palette), num_classes)
    ]
    made = np.rint(np.reshape(made, (-1, 3)) * 255).astype("uint8")
    return np.concatenate([palette[:num_classes], made])


def number_colours(folder, output):
    """Makes label maps of numbers from ones of colours.

    The number of a colour is its place among the sorted colours of all files.
    What is written has these colours as its palette, and looks the same.

    Args:
        folder: String. All images below it are read.
        output: String, the folder to write PNG files to, under the same
            names in the same sub-folders.

    Returns:
        uint8 array `(n, 3)`, the sorted colours.

    Raises:
        ValueError: if there are more than 256 colours, a file cannot be read
            or has more than 8 bits, or one to be written exists already.
    """
    sources = data.by_name(os.fspath(folder))
    targets = {name: os.path.join(output, f"{name}.png") for name in sources}
    for target in targets.values():
        if os.path.exists(target):
            raise ValueError(
                "Files are not written over. Pass another folder, or remove "
                f"it. Received: {target!r}, which exists already"
            )
    colours = set()
    for path in sources.values():
        # Of more colours than that PIL tells none.
        counts = _read_colours(path).getcolors(256)
        colours.update(colour for _, colour in counts or ())
        if counts is None or len(colours) > 256:
            raise ValueError(
                "There are more than 256 colours, as in photographs, or where "
                "label maps were blurred, resized, or saved as JPEG. Pass the "
                "label maps that these were made from. Received: "
                f"{os.fspath(folder)!r}, up to {path!r}"
            )
    colours = np.array(sorted(colours), "uint8")
    for name, path in sources.items():
        pixels = _code(np.asarray(_read_colours(path)))
        image = Image.fromarray(
            np.searchsorted(_code(colours), pixels).astype("uint8")
        )
        image.putpalette(colours.tobytes())
        files.save(image, targets[name])
    return colours


def _read_colours(path):
    image = _read_lossless(path)
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(
            "The image has numbers where each pixel should have the colour of "
            f"its class. Received: {path!r} of mode {image.mode!r}"
        )
    return image.convert("RGB")


def _code(colours):
    """Colours as ints of the same order."""
    red, green, blue = np.moveaxis(colours.astype("int32"), -1, 0)
    return (red << 16) | (green << 8) | blue


def _palette(image):
    return np.reshape(image.getpalette("RGB"), (-1, 3)).astype("uint8")
