"""Pairs of photographs, small and large, for the experiments that enlarge."""

import hashlib
import io
import itertools
import os
import typing

import numpy as np

from experiments import batches, data
from keras_san.metrics.resizing import imresize

# Of scikit-image's bundled images, what a camera has made, and not a second
# time. The validation split is what no training sees.
_TRAIN = (
    "astronaut.png brick.png camera.png coffee.png coins.png grass.png "
    "gravel.png motorcycle_left.png rocket.jpg"
)
_BUNDLED = {"train": _TRAIN.split(), "validation": ["chelsea.png"]}


class Pair(typing.NamedTuple):
    """A photograph of any size, small and large.

    Attributes:
        name: String, the file without its ending.
        small: uint8 array `(height, width, 3)`.
        large: uint8 array `(scale * height, scale * width, 3)`.
    """

    name: str
    small: np.ndarray
    large: np.ndarray

    @property
    def scale(self):
        """The factor between the heights, and the widths."""
        return len(self.large) // len(self.small)

    def window(self, y, x, size):
        """The part from a small pixel on, `size` of them, or all there are."""
        small = self.small[y : y + size, x : x + size]
        y, x, size = (n * self.scale for n in (y, x, size))
        return Pair(self.name, small, self.large[y : y + size, x : x + size])

    def middle(self, size):
        """The middle, at most `size` large pixels high and wide."""
        size //= self.scale
        y, x = (max(0, n - size) // 2 for n in self.small.shape[:2])
        return self.window(y, x, size)


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
    """Reads photographs, as a list of `Pair`.

    `"photographs"` are scikit-image's bundled ones. A folder stands for all
    images below it, with the small ones of the same names, but for the
    endings, in the folder `small`; or it has sub-folders `HR` and `LR` of both.
    Any other name is a dataset of tensorflow-datasets with images `lr` and
    `hr`. A folder has no splits; all else has `"train"` and `"validation"`.

    Greyscale ones get three equal channels. Where there are large ones only,
    they lose rows and columns at their lower and right ends until `scale`
    divides them, and MATLAB's antialiased bicubic downscaling makes the small
    ones. `cache` is a folder in which decoded photographs are kept, to be read
    from there, now and the next time, in place of being held in memory.
    """
    name = os.fspath(name)
    source = data.source(name, "photographs")
    if source == "tfds":
        items = _tfds(name, split, data_dir, download)
    else:
        own = source == "own"
        items = _files(_bundled(split) if own else _folder(name, small))
    pairs = []
    for name, identity, files in itertools.islice(items, limit):
        if cache is None:
            high, low = _decode(name, files, scale)
        else:
            high, low = _cached(cache, identity, name, files, scale)
        pairs.append(Pair(name, low, high))
    return pairs


def _decode(name, files, scale):
    high, *lows = (np.asarray(data.decode(x).convert("RGB")) for x in files)
    height, width = high.shape[:2]
    if not lows:
        if min(height, width) < scale:
            raise ValueError(
                f"A photograph must have at least {scale} x {scale} pixels. "
                f"Received: {name!r} with {width} x {height} pixels"
            )
        high = high[: height // scale * scale, : width // scale * scale]
        return high, imresize(high, 1.0 / scale)
    (low,) = lows
    if (height, width) != tuple(n * scale for n in low.shape[:2]):
        raise ValueError(
            f"The large photograph of a pair must have {scale} times the "
            f"height and width of the small one. Received: {name!r} with "
            f"{width} x {height} and {low.shape[1]} x {low.shape[0]} pixels"
        )
    return high, low


def _cached(folder, identity, name, files, scale):
    os.makedirs(folder, exist_ok=True)
    code = hashlib.sha256(f"{identity} x{scale}".encode()).hexdigest()[:16]
    stem = os.path.join(folder, f"{os.path.basename(name)}_{code}")
    paths = [f"{stem}_{kind}.npy" for kind in ("large", "small")]
    if not all(os.path.exists(path) for path in paths):
        for path, array in zip(paths, _decode(name, files, scale)):
            # Under its name only once it is whole.
            with open(f"{path}.new", "wb") as file:
                np.save(file, array)
            os.replace(f"{path}.new", path)
    return [np.load(path, mmap_mode="r") for path in paths]


# Items are tuples: a name, a string that is different for whatever may have
# other pixels, and the files of the large photograph and, if there is one, of
# the small one. They are decoded only where a cache does not have them.


def _files(named):
    for name, files in named:
        stats = map(os.stat, files)
        kept = [(f, s.st_mtime_ns, s.st_size) for f, s in zip(files, stats)]
        yield name, str(kept), files


def _bundled(split):
    import skimage

    for file in _BUNDLED[split]:
        yield os.path.splitext(file)[0], [os.path.join(skimage.data_dir, file)]


def _folder(path, small):
    parts = [os.path.join(path, part) for part in ("HR", "LR")]
    if small is not None:
        parts = [path, small]
    elif not all(map(os.path.isdir, parts)):
        parts = [path]
    found = data.matching(dict(zip(("large", "small"), parts)))
    return [(name, [*files.values()]) for name, files in found]


def _tfds(name, split, data_dir, download):
    info, examples = data.read_tfds(
        *(name, split, {"hr": None, "lr": None}, data_dir, download),
        own="photographs",
        example="div2k/bicubic_x4",
        decode=False,
    )
    for index, example in enumerate(examples):
        identity = f"{info.full_name} {split} {index}"
        files = [io.BytesIO(example[kind]) for kind in ("hr", "lr")]
        yield f"{split}_{index:04d}", identity, files


class Crops(batches.Batches):
    """Batches of crops at random places of random photographs, half mirrored.

    Each is a tuple `(small, large)` of float32 arrays in [-1, 1], of shapes
    `(batch_size, crop, crop, 3)` and `scale` times as high and wide.
    """

    def __init__(self, pairs, crop, batch_size, seed=0):
        super().__init__([pairs], batch_size, seed)
        for name, low, _ in pairs:
            height, width = low.shape[:2]
            if min(height, width) < crop:
                raise ValueError(
                    f"Small photographs must have at least {crop} x {crop} "
                    "pixels, those of a crop: pass smaller crops, or leave "
                    f"this one out. Received: {name!r} with {width} x {height}"
                )
        self.pairs = pairs
        self.crop = crop

    def __getitem__(self, number):
        rng = np.random.default_rng((self.seed, number))
        crops = []
        for _ in range(self.batch_size):
            pair = self.pairs[rng.integers(len(self.pairs))]
            places = (n - self.crop + 1 for n in pair.small.shape[:2])
            window = pair.window(*map(rng.integers, places), self.crop)
            step_x = rng.choice((1, -1))
            crops.append([part[:, ::step_x] for part in window[1:]])
        return tuple(batches.to_float(np.stack(x)) for x in zip(*crops))
