"""Images with binary attributes, in memory, and batches of them."""

import csv
import dataclasses
import os

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from experiments import batches, data
from keras_san.checks import check_count

# What is read of CelebA's forty attributes where none are asked for.
_CELEB_A = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")

# Of a folder, no more images than these are held out.
_MOST_HELD_OUT = 2000

_COLOURS = ("red", "green", "blue")

# What a table may hold. CelebA's own has -1 where an attribute is missing.
_TRUTHS = {"1": 1.0, "true": 1.0, "0": 0.0, "-1": 0.0, "false": 0.0}


@dataclasses.dataclass(frozen=True, eq=False)
class AttributedImages:
    """A dataset that lies in memory.

    Attributes:
        name: String, as it was given to `load`.
        images: uint8 array `(n, size, size, 3)`.
        attributes: float32 array `(n, number)` of 0 and 1.
        attribute_names: List of strings, one for each column.
    """

    name: str
    images: np.ndarray
    attributes: np.ndarray
    attribute_names: list

    def __len__(self):
        return len(self.images)


def load(
    name="digits",
    split="train",
    attributes=None,
    size=None,
    csv=None,
    data_dir=None,
    download=False,
    limit=None,
):
    """Reads images and their attributes into memory.

    The central square of each image is resized by PIL's bicubic filter. What
    is greyscale gets three equal channels.

    Args:
        name: String. `"digits"` are scikit-learn's handwritten digits, drawn
            thick or thin in one of three colours; they need no network. An
            existing folder stands for its images that `csv` lists. Any other
            name is one of tensorflow-datasets with an `image` and a
            dictionary of booleans `attributes`, as `"celeb_a"`.
        split: String, `"train"` or `"validation"`. Of the digits the last
            fifth is for validation, of a folder the last tenth of the list,
            at most 2,000 images.
        attributes: List of the names of those to read, in that order. `None`
            stands for all, and in `"celeb_a"` for five: `Black_Hair`,
            `Blond_Hair`, `Brown_Hair`, `Male` and `Young`.
        size: Int `N` >= 4: images get N x N pixels. `None` stands for 32
            with the digits, else for 128.
        csv: The path of a table of the images of a folder: a header, then a
            row for each, first its path in the folder, then each attribute
            as 1 or 0, 1 or -1, true or false. It may have the form of
            CelebA's `list_attr_celeba.txt`, too: the number of images, the
            names of the attributes, and rows, all parted by spaces.
        data_dir: String. Where tensorflow-datasets keeps its datasets.
        download: Boolean. Whether tensorflow-datasets may download.
        limit: `None`, or an int, of how many images at most, the first ones.
            All that `"celeb_a"` has to train on take 8 GB.

    Returns:
        An `AttributedImages`.

    Raises:
        ValueError: if there are no such images or attributes, if the table
            cannot be read or understood, if an image is missing or cannot be
            read, if there are fewer than two to train on, or if of those all
            or none have an attribute.
    """
    name = os.fspath(name)
    if split not in ("train", "validation"):
        raise ValueError(
            '`split` must be "train" or "validation". '
            f"Received: split={split!r}"
        )
    digits = name == "digits"
    folder = not digits and os.path.isdir(name)
    if folder != (csv is not None):
        raise ValueError(
            "A folder of images needs a table of their attributes, `csv`, and "
            f"nothing else has one. Received: csv={csv!r} with name={name!r}, "
            f"which is {'a' if folder else 'no'} folder"
        )
    if size is None:
        size = 32 if digits else 128
    check_count("size", size, least=4)
    if limit is not None:
        check_count("limit", limit)

    if digits:
        known, count, read = _digits(split)
    elif folder:
        known, count, read = _folder(name, os.fspath(csv), split)
    else:
        known, count, read = _tfds(name, split, data_dir, download)
        # tensorflow-datasets takes a version too, as in "celeb_a:2.1.0".
        if attributes is None and name.partition(":")[0] == "celeb_a":
            attributes = _CELEB_A
    chosen = _choose(attributes, known, csv if folder else name)
    count = count if limit is None else min(count, limit)
    if count < (2 if split == "train" else 1):
        raise ValueError(
            "There must be at least two images to train on, and one to "
            f"validate. Received: {count} with name={name!r}, split={split!r} "
            f"and limit={limit}"
        )

    images = np.empty((count, size, size, 3), "uint8")
    values = np.empty((count, len(chosen)), "float32")
    # As they are read, since all in full size may not fit into memory.
    for index, (image, row) in enumerate(read(chosen, count)):
        image = image.convert("RGB")
        images[index] = ImageOps.fit(
            image, (size, size), Image.Resampling.BICUBIC
        )
        values[index] = row
    if split == "train":
        _check_both(values, chosen, name)
    return AttributedImages(name, images, values, chosen)


def _choose(asked, known, name):
    """The names of the attributes to read, as a list."""
    chosen = list(known if asked is None else asked)
    missing = [x for x in chosen if x not in known]
    if missing:
        raise ValueError(
            f"The images have the attributes {known}. Received: {missing[0]!r} "
            f"in attributes={asked!r} of {name!r}"
        )
    if not chosen or len({*chosen}) < len(chosen):
        raise ValueError(
            "There must be at least one attribute, and none of them twice. "
            f"Received: attributes={chosen!r} of {name!r}"
        )
    return chosen


def _check_both(values, chosen, name):
    for attribute, column in zip(chosen, values.T):
        if column.min() == column.max():
            having = "all" if column[0] else "none"
            raise ValueError(
                "An attribute that all images have, or none, cannot be "
                "learned. Leave it out, or read more images. Received: "
                f"{attribute!r} of {name!r}, which {having} of {len(column)} "
                "images have"
            )


# Each source returns the names of all its attributes, the number of images in
# the split, and a function of the chosen names and of how many images to
# read, which returns pairs: a PIL image, and its values in the chosen order.


def _digits(split):
    from sklearn.datasets import load_digits

    arrays = load_digits().images
    train = len(arrays) * 4 // 5
    indices = range(len(arrays))
    indices = indices[:train] if split == "train" else indices[train:]
    known = [*_COLOURS, "thick"]

    def read(chosen, count):
        for index in indices[:count]:
            # A digit looks the same, however many others are read.
            rng = np.random.default_rng((0, index))
            colour, thick = rng.integers(3), rng.integers(2)
            values = [*np.eye(3)[colour], thick]
            stroke = _stroke(arrays[index], thick)
            image = _paint(stroke, colour, rng)
            yield image, [values[known.index(name)] for name in chosen]

    return known, len(indices), read


def _stroke(array, thick):
    """One digit as a line of the same width everywhere.

    Args:
        array: Array `(8, 8)` from 0 to 16.
        thick: Boolean.

    Returns:
        A float array `(80, 80)` in [0, 1].
    """
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


def _paint(stroke, colour, rng):
    """A stroke in about that colour, of `_COLOURS`, on nearly black."""
    background = rng.uniform(0, 30, 3)
    ink = rng.uniform(20, 100, 3)
    ink[colour] = rng.uniform(200, 255)
    pixels = background + stroke[..., None] * (ink - background)
    return Image.fromarray(np.rint(pixels).astype("uint8"))


def _folder(folder, table, split):
    known, rows = _read_table(table)
    held_out = min(max(1, len(rows) // 10), _MOST_HELD_OUT)
    rows = rows[:-held_out] if split == "train" else rows[-held_out:]

    def read(chosen, count):
        columns = [(name, known.index(name)) for name in chosen]
        examples = []
        # All of the table, before time goes into images.
        for line, file, cells in rows[:count]:
            path = os.path.join(folder, file)
            if not os.path.isfile(path):
                raise ValueError(
                    "The table names an image that is not there. Received: "
                    f"{path!r}, in line {line} of {table!r}"
                )
            values = []
            for name, column in columns:
                values.append(_TRUTHS.get(cells[column].strip().lower()))
                if values[-1] is None:
                    raise ValueError(
                        "Attributes must be 1 or 0, 1 or -1, true or false. "
                        f"Received: {cells[column]!r} in column {name!r}, "
                        f"line {line} of {table!r}"
                    )
            examples.append((path, values))
        for path, values in examples:
            yield data.decode(path), values

    return known, len(rows), read


def _read_table(path):
    """Reads a table of attributes.

    Returns:
        `(names, rows)`: the names of the attributes, and of each image the
        number of its line, its path and the list of its cells.
    """
    try:
        # Spreadsheets begin what they write with a mark.
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            "The table of attributes cannot be read: `csv` must be the path "
            f"of a text file. Received: {path!r} ({error})"
        ) from error
    if lines and lines[0].strip().isdigit():
        # The form of CelebA, whose header does not name the first column.
        rows = [line.split() for line in lines]
        rows[:2] = [[], ["", *rows[1]]] if len(rows) > 1 else []
    else:
        rows = csv.reader(lines)
    rows = [(line, row) for line, row in enumerate(rows, start=1) if row]
    if len(rows) < 2:
        raise ValueError(
            "A table of attributes must have a header and a row for each "
            f"image. Received: {path!r} with {len(rows)} rows"
        )
    (_, header), *rows = rows
    if len(header) < 2:
        raise ValueError(
            "The header of a table names the column of the images and the "
            "attributes, parted by commas. "
            f"Received: {path!r} with the header {header}"
        )
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                "All rows of a table must be as long as its header. Received: "
                f"{len(row)} cells in line {line} of {path!r}, whose header "
                f"has {len(header)}"
            )
    names = [name.strip() for name in header[1:]]
    return names, [(line, row[0].strip(), row[1:]) for line, row in rows]


def _tfds(name, split, data_dir, download):
    import tensorflow_datasets as tfds

    builder = data.open_builder(name, data_dir, download, example="celeb_a")
    features = dict(builder.info.features.items())
    image, attributes = features.get("image"), features.get("attributes")
    if not (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and isinstance(attributes, tfds.features.FeaturesDict)
        and all(x.np_dtype == np.bool_ for x in attributes.values())
        and all(x.shape == () for x in attributes.values())
    ):
        raise ValueError(
            'The dataset has no 8-bit images called "image" with a dictionary '
            'of booleans called "attributes". Choose another one, such as '
            f'"celeb_a". Received: {name!r} with {features}'
        )
    splits = builder.info.splits
    if split not in splits:
        raise ValueError(
            f"The dataset has the splits {sorted(splits)} only. Received: "
            f"split={split!r} with name={name!r}"
        )

    def read(chosen, count):
        dataset = builder.as_dataset(
            split=split,
            # By default small datasets are kept in memory once more.
            read_config=tfds.ReadConfig(try_autocache=False),
            decoders=tfds.decode.PartialDecoding(
                {"image": True, "attributes": {*chosen}}
            ),
        )
        for example in tfds.as_numpy(dataset.take(count)):
            array = example["image"]
            # PIL wants two dimensions where there is one channel.
            array = array[..., 0] if array.shape[-1] == 1 else array
            values = [example["attributes"][name] for name in chosen]
            yield data.plain(Image.fromarray(array)), values

    return list(attributes), splits[split].num_examples, read


def make_batches(images, batch_size, seed=0, mirror=False):
    """Batches of images and attributes.

    Args:
        images: An `AttributedImages`.
        batch_size: Int.
        seed: Int.
        mirror: Boolean. Whether to mirror about half of the images.

    Returns:
        A `batches.Batches` of pairs of float32 arrays: images in [-1, 1],
        `(batch_size, size, size, 3)`, and attributes of 0 and 1,
        `(batch_size, number)`.
    """
    return batches.Batches(
        [images.images, images.attributes],
        batch_size,
        seed,
        mirror,
        lambda pixels, values: (batches.to_float(pixels), values),
    )
