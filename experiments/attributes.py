"""Images with binary attributes, in memory."""

import csv
import itertools
import os

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from experiments import data

# What is read of CelebA's forty attributes where none are asked for.
_CELEB_A = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")

# Of a folder, no more images than these are held out.
_MOST_HELD_OUT = 2000

# What a table may hold. CelebA's own has -1 where an attribute is missing.
_TRUTHS = {"1": 1.0, "true": 1.0, "0": 0.0, "-1": 0.0, "false": 0.0}


def load(settings):
    """Reads images and their attributes into memory.

    The digits are scikit-learn's, drawn thick or thin in three colours; the
    last fifth is for validation. Of a folder, a table lists the images: a
    header, then a row for each, its path in the folder and each attribute as
    1 or 0, 1 or -1, true or false; or as CelebA's `list_attr_celeba.txt`. Its
    last tenth, at most 2,000 images, is for validation. Any other dataset has
    an `image`, booleans `attributes`, and a split `validation`.

    Args:
        settings: Those of `attribute_transfer`.

    Returns:
        A tuple `(names, train, validation)`: a list of the names of the
        attributes, and two pairs of uint8 images `(n, size, size, 3)` and
        float32 attributes `(n, len(names))` of 0 and 1.
    """
    name = settings.data
    kind = data.source(name, "digits")
    if (kind == "folder") != (settings.csv is not None):
        raise ValueError(
            "A folder of images needs a table of their attributes, and nothing "
            f"else has one. Received: --csv {settings.csv} with --data {name}, "
            f"which is {'a' if kind == 'folder' else 'no'} folder"
        )
    open_source = {"own": _digits, "folder": _folder, "tfds": _tfds}[kind]
    known, counts, read = open_source(settings)
    names = settings.attributes
    if names is None:
        # tensorflow-datasets takes a version too, as in "celeb_a:2.1.0".
        celeb_a = kind == "tfds" and name.partition(":")[0] == "celeb_a"
        names = _CELEB_A if celeb_a else known
    names = [*names]
    check("--attributes", names, known)
    if not names or len({*names}) < len(names):
        raise ValueError(
            "There must be at least one attribute, and none of them twice. "
            f"Received: {names} of {settings.csv or name}"
        )
    places(settings.groups, names)  # Before time goes into images.

    loaded = []
    for split, least, most in (
        ("train", 2, settings.images),
        ("validation", 1, settings.show),
    ):
        count = counts[split] if most is None else min(counts[split], most)
        if count < least:
            raise ValueError(
                "There must be at least two images to train on, and one to "
                f"show. Received: {count} of {name!r} in the split {split!r}"
            )
        images = np.empty((count, settings.size, settings.size, 3), "uint8")
        values = np.empty((count, len(names)), "float32")
        # As they are read, since all in full size may not fit into memory.
        for i, (image, row) in enumerate(read(split, names, count)):
            images[i], values[i] = square(image, settings.size), row
        loaded.append((images, values))
    for attribute, column in zip(names, loaded[0][1].T):
        if column.min() == column.max():
            raise ValueError(
                "An attribute that all images have, or none, cannot be "
                "learned. Leave it out, or read more images. Received: "
                f"{attribute!r} of {name!r}, which "
                f"{'all' if column[0] else 'none'} of {len(column)} images have"
            )
    return names, *loaded


def check(flag, chosen, names):
    """Raises a `ValueError` unless all chosen attributes are known."""
    for name in chosen:
        if name not in names:
            raise ValueError(
                f"The attributes are {names}. Received: {flag} {name}"
            )


def places(groups, names):
    """Lists of places among the names, for exclusive groups of names."""
    every = sum(groups, [])
    check("--exclusive", every, names)
    if len({*every}) < len(every) or any(len(group) < 2 for group in groups):
        raise ValueError(
            "An exclusive group has at least two attributes, and none that "
            f"another one has. Received: --exclusive {groups}"
        )
    return [[names.index(name) for name in group] for group in groups]


def square(image, size):
    """The central square of a PIL image in `size` x `size` pixels."""
    image = image.convert("RGB")
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


# Each source returns the names of all its attributes, the number of images by
# split, and a function of a split, the chosen names and how many images to
# read, which returns pairs: a PIL image, and its values in the chosen order.


def _digits(settings):
    from sklearn.datasets import load_digits

    known = ["red", "green", "blue", "thick"]
    arrays = load_digits().images
    train = len(arrays) * 4 // 5

    def read(split, chosen, count):
        start = 0 if split == "train" else train
        for index in range(start, start + count):
            # A digit looks the same, however many others are read.
            rng = np.random.default_rng((0, index))
            colour, thick = rng.integers(3), rng.integers(2)
            stroke = _stroke(arrays[index], thick)[..., None]
            # In about that colour on nearly black.
            background, ink = rng.uniform(0, 30, 3), rng.uniform(20, 100, 3)
            ink[colour] = rng.uniform(200, 255)
            pixels = np.rint(background + stroke * (ink - background))
            values = dict(zip(known, [*np.eye(3)[colour], thick]))
            image = Image.fromarray(pixels.astype("uint8"))
            yield image, [values[name] for name in chosen]

    return known, {"train": train, "validation": len(arrays) - train}, read


def _stroke(array, thick):
    """A digit, `(80, 80)` in [0, 1], as a line of the same width everywhere."""
    from skimage.morphology import skeletonize

    image = Image.fromarray(np.rint(array * 255 / 16).astype("uint8"))
    # Strokes begin in the first row and end in the last.
    image = ImageOps.expand(image, 1)
    image = image.resize((80, 80), Image.Resampling.BICUBIC)
    # Ink is what is brighter than what surrounds it: at one level for all,
    # narrow loops would fill, or faint strokes break.
    around = np.asarray(image.filter(ImageFilter.GaussianBlur(8)), "float32")
    image = np.asarray(image, "float32")
    line = skeletonize(np.logical_and(image >= 80, image >= around + 20))
    image = Image.fromarray(line.astype("uint8") * 255)
    image = image.filter(ImageFilter.MaxFilter(11 if thick else 5))
    image = image.filter(ImageFilter.GaussianBlur(1.5))
    return np.asarray(image, "float32") / 255


def _folder(settings):
    table = settings.csv
    known, rows = _read_table(table)
    train = len(rows) - min(max(1, len(rows) // 10), _MOST_HELD_OUT)
    parts = {"train": rows[:train], "validation": rows[train:]}

    def read(split, chosen, count):
        examples = []
        # All of the table, before time goes into images.
        for line, file, cells in parts[split][:count]:
            path = os.path.join(settings.data, file)
            if not os.path.isfile(path):
                raise ValueError(
                    "The table names an image that is not there. Received: "
                    f"{path!r}, in line {line} of {table!r}"
                )
            cells = {name: cells[known.index(name)] for name in chosen}
            values = [_TRUTHS.get(x.strip().lower()) for x in cells.values()]
            if None in values:
                name = chosen[values.index(None)]
                raise ValueError(
                    "Attributes must be 1 or 0, 1 or -1, true or false. "
                    f"Received: {cells[name]!r} in column {name!r}, line "
                    f"{line} of {table!r}"
                )
            examples.append((path, values))
        return ((data.decode(path), values) for path, values in examples)

    return known, {split: len(part) for split, part in parts.items()}, read


def _read_table(path):
    """The names of a table's attributes, and of each image a tuple.

    The tuples are the number of the line, the path, and a list of cells.
    """
    try:
        # Spreadsheets begin what they write with a mark.
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            "The table of attributes cannot be read: --csv must be the path "
            f"of a text file. Received: {path!r} ({error})"
        ) from error
    if lines and lines[0].strip().isdigit():
        # The form of CelebA, whose header does not name the first column.
        rows = [line.split() for line in lines]
        rows[:2] = [[], ["", *rows[1]]] if len(rows) > 1 else []
    else:
        rows = csv.reader(lines)
    rows = [(line, row) for line, row in enumerate(rows, start=1) if row]
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise ValueError(
            "A table must have a header, of the column of the images and the "
            "attributes, parted by commas, and a row for each image. "
            f"Received: {path!r} with {len(rows)} rows, the first {rows[:1]}"
        )
    (_, header), *rows = rows
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                "All rows of a table must be as long as its header. Received: "
                f"{len(row)} cells in line {line} of {path!r}, whose header "
                f"has {len(header)}"
            )
    names = [name.strip() for name in header[1:]]
    return names, [(line, row[0].strip(), row[1:]) for line, row in rows]


def _tfds(settings):
    import tensorflow_datasets as tfds

    opened = {
        split: data.read_tfds(
            *(settings.data, split, {"image": None}),
            *(settings.data_dir, settings.download),
            example="celeb_a",
        )
        for split in ("train", "validation")
    }
    info, _ = opened["train"]
    features = dict(info.features.items())
    flags = features.get("attributes")
    if not isinstance(flags, tfds.features.FeaturesDict) or any(
        (x.shape, x.np_dtype) != ((), np.bool_) for x in flags.values()
    ):
        raise ValueError(
            'The dataset has no dictionary of booleans "attributes". Choose '
            f'one such as "celeb_a". Received: {settings.data!r} with '
            f"{features}"
        )

    def read(split, chosen, count):
        for example in itertools.islice(opened[split][1], count):
            values = [example["attributes"][name] for name in chosen]
            yield data.plain_array(example["image"]), values

    counts = {split: info.splits[split].num_examples for split in opened}
    return [*flags], counts, read
