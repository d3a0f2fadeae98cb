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


def read_numbers(path, what):
    """Reads one number a pixel, of a paletted image the indices.

    Args:
        path: String.
        what: String, for errors: what a number stands for.

    Returns:
        An int32 array `(height, width)`, and the palette, uint8 `(colours,
        3)`, or `None`.
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
                "The image has colours where each pixel should hold the number "
                f"of its {what}. `python -m experiments.image_translation "
                "number FOLDER` makes label maps of numbers from colours. "
                f"Received: {path!r}"
            )
        numbers = numbers[..., 0]
    palette = None
    if image.mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3)).astype("uint8")
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


def check(numbers, num_classes, void, where, advice=_ADVICE):
    """The numbers of pixels as uint8 labels, those without a class `VOID`."""
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


def check_sizes(where, **arrays):
    """Raises a `ValueError` unless arrays, where not `None`, have one size."""
    sizes = {k: x.shape[1::-1] for k, x in arrays.items() if x is not None}
    if len({*sizes.values()}) > 1:
        found = ", ".join(f"{kind} {w} x {h}" for kind, (w, h) in sizes.items())
        raise ValueError(
            "The files of a scene must have the same size. "
            f"Received: {where!r} with {found} pixels"
        )


def read_maps(path, ids, size, num_classes, void):
    """Makes what a network sees of a label map, and the file of its `ids`.

    Here `num_classes` counts the class of pixels of the number `void`, too.
    """
    classes = num_classes - (void is not None)
    without = "" if void is None else f", and {void} for pixels without one"
    advice = f"The network was trained on {classes} classes{without}."
    numbers, _ = read_numbers(path, "class")
    labels = check(numbers, classes, void, path, advice)
    labels[labels == VOID] = num_classes - 1
    edges = None
    if ids is not None:
        instances, _ = read_numbers(ids, "instance")
        check_sizes(path, labels=labels, instances=instances)
        edges = instance_edges(nearest(instances, size))
    return one_hot(nearest(labels, size), num_classes, edges)


def nearest(numbers, size):
    """Resizes an array of numbers to `(height, width)`."""
    image = Image.fromarray(numbers)
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))


def one_hot(labels, num_classes, edges=None):
    """The uint8 channels that a network sees: classes, and edges if any."""
    channels = num_classes + (edges is not None)
    maps = np.empty((*labels.shape, channels), "uint8")
    classes = np.arange(num_classes, dtype="uint8")
    maps[..., :num_classes] = labels[..., None] == classes
    if edges is not None:
        maps[..., -1] = edges
    return maps


def instance_edges(ids):
    """Marks where things border on each other: 1 on both sides, else 0."""
    edges = np.zeros(ids.shape, "uint8")
    across = ids[..., :, 1:] != ids[..., :, :-1]
    edges[..., :, 1:] |= across
    edges[..., :, :-1] |= across
    down = ids[..., 1:, :] != ids[..., :-1, :]
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    return edges


def complete(palette, num_classes):
    """A palette of all classes, with distinct colours where it has none."""
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
    What is written, as PNG under the same names, has these as its palette, and
    looks the same. They are returned, as a uint8 array `(n, 3)`.
    """
    sources = data.by_name(folder)
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
    code = np.array([2**16, 2**8, 1])  # Ints of the same order.
    for name, path in sources.items():
        pixels = np.asarray(_read_colours(path)) @ code
        numbers = np.searchsorted(colours @ code, pixels).astype("uint8")
        image = Image.fromarray(numbers)
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
