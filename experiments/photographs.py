"""Pairs of photographs, small and large, for the experiments that enlarge."""

import collections.abc
import dataclasses
import functools
import hashlib
import io
import itertools
import os

import numpy as np
from PIL import Image

from experiments import batches, data
from keras_san.metrics.resizing import imresize

# Of scikit-image's bundled images, what a camera has made, and not a second
# time. The validation split is what no training sees.
_BUNDLED = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "validation": ("chelsea.png",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Photographs of any size, each of them small and large.

    Attributes:
        names: List of strings, the files without their endings.
        small: List of uint8 arrays `(height, width, 3)`.
        large: List of uint8 arrays `(scale * height, scale * width, 3)`.
        scale: Int.
    """

    names: list
    small: list
    large: list
    scale: int

    def __len__(self):
        return len(self.names)

    def __getitem__(self, part):
        """The pairs of a slice."""
        return Pairs(
            self.names[part], self.small[part], self.large[part], self.scale
        )

    def middle(self, size):
        """The middle of each pair, at most `size` pixels high and wide."""
        return dataclasses.replace(
            self,
            small=[_middle(low, size // self.scale) for low in self.small],
            large=[
                _middle(high, size // self.scale * self.scale, self.scale)
                for high in self.large
            ],
        )


def _middle(image, size, unit=1):
    parts = []
    for n in image.shape[:2]:
        start = max(0, n - size) // unit // 2 * unit
        parts.append(slice(start, start + min(n, size)))
    return image[tuple(parts)]


def load(
    name="photographs",
    split="train",
    scale=4,
    small=None,
    data_dir=None,
    download=False,
    cache=None,
    limit=None,
):
    """Reads pairs of photographs.

    What is greyscale gets three equal channels. Where only large photographs
    are given, rows and columns at their lower and right ends are cut off
    until `scale` divides what is left, and the small ones come from MATLAB's
    antialiased bicubic downscaling, see `keras_san.metrics.resizing.imresize`.

    Args:
        name: String. `"photographs"` are scikit-image's bundled ones; they
            need no network. An existing folder stands for all images below
            it; if it has sub-folders `HR` and `LR`, for their pairs. Any
            other name is one of tensorflow-datasets with images `lr` and
            `hr`, as `"div2k/bicubic_x4"`.
        split: String, `"train"` or `"validation"`; a folder has no splits.
        scale: Int >= 2, the factor between the heights, and the widths.
        small: A folder with the small photographs of the folder `name`,
            under the same names but for the endings.
        data_dir: String. Where tensorflow-datasets keeps its datasets.
        download: Boolean. Whether tensorflow-datasets may download.
        cache: `None`, or a folder in which decoded photographs are kept as
            `.npy` files, to be read from there, now and the next time, in
            place of being held in memory.
        limit: `None`, or an int, of how many photographs at most.

    Returns:
        A `Pairs`.

    Raises:
        ValueError: if there are no such photographs, one cannot be read, or
            the two of a pair do not fit.
    """
    name = os.fspath(name)
    if name == "photographs":
        items = _bundled(split)
    elif os.path.isdir(name):
        items = _folder(name, small)
    else:
        items = _tfds(name, split, data_dir, download)
    pairs = Pairs([], [], [], scale)
    for item in itertools.islice(items, limit):
        if cache is None:
            high, low = _decode(item, scale)
        else:
            high, low = _through_files(item, scale, cache)
        pairs.names.append(item.name)
        pairs.large.append(high)
        pairs.small.append(low)
    return pairs


@dataclasses.dataclass(frozen=True)
class _Item:
    """A photograph that has not been decoded.

    Attributes:
        name: String.
        identity: String, different for whatever may have other pixels.
        large: Callable that returns a PIL image.
        small: The same, or `None` if there is no small one.
    """

    name: str
    identity: str
    large: collections.abc.Callable
    small: collections.abc.Callable | None = None


def _decode(item, scale):
    high = np.asarray(item.large().convert("RGB"))
    height, width = (n // scale for n in high.shape[:2])
    if item.small is None:
        if 0 in (height, width):
            raise ValueError(
                f"A photograph must have at least {scale} x {scale} pixels. "
                f"Received: {item.name!r} with {high.shape[1]} x "
                f"{high.shape[0]} pixels"
            )
        high = high[: height * scale, : width * scale]
        return high, imresize(high, 1.0 / scale)
    low = np.asarray(item.small().convert("RGB"))
    if high.shape[:2] != tuple(n * scale for n in low.shape[:2]):
        raise ValueError(
            f"The large photograph of a pair must have {scale} times the "
            "height and width of the small one. Received: "
            f"{item.name!r} with {high.shape[1]} x {high.shape[0]} and "
            f"{low.shape[1]} x {low.shape[0]} pixels"
        )
    return high, low


def _through_files(item, scale, folder):
    os.makedirs(folder, exist_ok=True)
    code = hashlib.sha256(f"{item.identity} x{scale}".encode()).hexdigest()
    stem = os.path.join(folder, f"{os.path.basename(item.name)}_{code[:16]}")
    paths = [f"{stem}_{kind}.npy" for kind in ("large", "small")]
    if not all(os.path.exists(path) for path in paths):
        for path, array in zip(paths, _decode(item, scale)):
            # Under its name only once it is whole.
            with open(f"{path}.new", "wb") as file:
                np.save(file, array)
            os.replace(f"{path}.new", path)
    return [np.load(path, mmap_mode="r") for path in paths]


def _bundled(split):
    import skimage

    for file in _BUNDLED[split]:
        path = os.path.join(skimage.data_dir, file)
        name = os.path.splitext(file)[0]
        yield _Item(name, path, functools.partial(data.decode, path))


def _folder(path, small):
    parts = [os.path.join(path, name) for name in ("HR", "LR")]
    if small is None and all(os.path.isdir(part) for part in parts):
        path, small = parts
    large_files = data.by_name(path)
    small_files = None if small is None else data.by_name(small)
    if small is not None:
        odd = sorted({*large_files} ^ {*small_files})
        if odd:
            where = small if odd[0] in large_files else path
            raise ValueError(
                "Large and small photographs must have the same names. "
                f"Received: {len(odd)} without the other, the first of them "
                f"{odd[0]!r}, which is not in {where!r}"
            )
    for name, file in large_files.items():
        files = [file, *([] if small is None else [small_files[name]])]
        stats = [os.stat(f) for f in files]
        yield _Item(
            name,
            str([(f, s.st_mtime_ns, s.st_size) for f, s in zip(files, stats)]),
            *(functools.partial(data.decode, f) for f in files),
        )


def _tfds(name, split, data_dir, download):
    import tensorflow_datasets as tfds

    builder = data.open_builder(
        name, data_dir, download, "photographs", "div2k/bicubic_x4"
    )
    if not {"lr", "hr"} <= {*builder.info.features}:
        raise ValueError(
            "The dataset has no images `lr` and `hr`. Take one such as "
            f'"div2k/bicubic_x4". Received: {name!r} with '
            f"{builder.info.features}"
        )
    read_config = tfds.ReadConfig(try_autocache=False)
    # Decoding is what takes time, and is not done for what a cache has.
    skip = {name: tfds.decode.SkipDecoding() for name in ("lr", "hr")}
    dataset = builder.as_dataset(
        split=split, read_config=read_config, decoders=skip
    )
    for index, example in enumerate(tfds.as_numpy(dataset)):
        yield _Item(
            f"{split}_{index:04d}",
            f"{builder.info.full_name} {split} {index}",
            *(
                functools.partial(Image.open, io.BytesIO(example[name]))
                for name in ("hr", "lr")
            ),
        )


class Crops(batches.Batches):
    """Batches of crops at random places of random photographs, half mirrored.

    Args:
        pairs: A `Pairs`.
        crop: Int, the height and width of the small crops.
        batch_size: Int.
        seed: Int.

    Returns:
        As items tuples `(small, large)` of float32 arrays in [-1, 1],
        `(batch_size, crop, crop, 3)` and `scale` times as high and wide.

    Raises:
        ValueError: if a photograph is smaller than a crop.
    """

    def __init__(self, pairs, crop, batch_size, seed=0):
        super().__init__([pairs.small, pairs.large], batch_size, seed)
        for name, low in zip(pairs.names, pairs.small):
            if min(low.shape[:2]) < crop:
                raise ValueError(
                    f"Small photographs must have at least {crop} x {crop} "
                    "pixels, those of a crop: pass smaller crops, or leave "
                    f"this one out. Received: {name!r} with {low.shape[1]} x "
                    f"{low.shape[0]} pixels"
                )
        self.crop = crop
        self.scale = pairs.scale

    def __getitem__(self, number):
        rng = np.random.default_rng((self.seed, number))
        crop, scale = self.crop, self.scale
        small, large = [], []
        for _ in range(self.batch_size):
            chosen = rng.integers(len(self.arrays[0]))
            low, high = (images[chosen] for images in self.arrays)
            y, x = (rng.integers(n - crop + 1) for n in low.shape[:2])
            step_x = rng.choice((1, -1))
            small.append(_window(low, y, x, crop)[:, ::step_x])
            large.append(
                _window(high, y * scale, x * scale, crop * scale)[:, ::step_x]
            )
        return tuple(batches.to_float(np.stack(x)) for x in (small, large))


def _window(image, y, x, size):
    return image[y : y + size, x : x + size]
