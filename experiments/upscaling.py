"""Enlarges image files of any size and kind by a network."""

import dataclasses
import os

import numpy as np
from PIL import Image, ImageOps

from experiments import data, files

# What an enlarged file keeps as its ending; others become PNG.
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")


def enlarge(model, image, tile=128, overlap=16, dtype="uint8"):
    """Runs a network over an image, tile by tile.

    Memory is bounded by the tile. Neighbouring tiles overlap, and are joined
    in the middle of that, where both have seen most of what a pixel depends
    on.

    Args:
        model: A Keras model that enlarges images `(n, height, width, 3)` of
            any size by a fixed factor.
        image: Float array `(height, width, 3)` in [-1, 1].
        tile: Int, the height and width of what is seen at once.
        overlap: Int, half of how many pixels a tile shares with the next one.
            As many as the network looks to each side leave no difference
            (20 for 8 residual blocks, where 8 leave one level in 255).
        dtype: `"uint8"` or `"uint16"`.

    Returns:
        An array `(scale * height, scale * width, 3)` of that type, black 0
        and white the highest value.

    Raises:
        ValueError: if the tiles are not larger than what they share.
    """
    if tile <= 2 * overlap:
        raise ValueError(
            "`tile` must be larger than twice the `overlap`. "
            f"Received: tile={tile}, overlap={overlap}"
        )
    enlarged, top = None, np.iinfo(dtype).max
    for rows, kept_rows in _tiles(image.shape[0], tile, overlap):
        for columns, kept_columns in _tiles(image.shape[1], tile, overlap):
            part = np.asarray(image[rows, columns], "float32")
            made = model.predict_on_batch(part[None])[0]
            scale = made.shape[0] // part.shape[0]
            if enlarged is None:
                size = [scale * n for n in image.shape[:2]]
                enlarged = np.empty((*size, made.shape[-1]), dtype)
            kept = made[
                _times(kept_rows, scale, rows.start),
                _times(kept_columns, scale, columns.start),
            ]
            # At once: as floats a large photograph would fill the memory.
            enlarged[_times(kept_rows, scale), _times(kept_columns, scale)] = (
                np.clip(np.rint((kept + 1.0) * (0.5 * top)), 0, top)
            )
    return enlarged


def _tiles(length, tile, overlap):
    """Slices of what to look at, and of what to keep of it."""
    if length <= tile:
        return [(slice(0, length), slice(0, length))]
    # All of one size, so that the network is traced once: the last one is
    # moved back to the end.
    starts = [*range(0, length - tile, tile - 2 * overlap), length - tile]
    cuts = [0, *(start + overlap for start in starts[1:]), length]
    return [
        (slice(start, start + tile), slice(low, high))
        for start, low, high in zip(starts, cuts, cuts[1:])
    ]


def _times(part, scale, origin=0):
    return slice(scale * (part.start - origin), scale * (part.stop - origin))


@dataclasses.dataclass
class Photograph:
    """The content of an image file.

    Attributes:
        levels: uint8 array `(height, width, 3)`, or, of greyscale images
            `(height, width)`, uint8 or uint16. Pillow reads more than 8 bits
            only where there is no colour.
        alpha: PIL image of mode "L", or `None`.
        profile: Bytes, the ICC profile, or `None`.
    """

    levels: np.ndarray
    alpha: Image.Image | None
    profile: bytes | None


def read(path):
    """Reads an image file of any mode, and turns it upright.

    Args:
        path: String.

    Returns:
        A `Photograph`.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    with data.reading(path), Image.open(path) as file:
        profile = file.info.get("icc_profile")
        image = ImageOps.exif_transpose(file)
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            profile = None  # It would be that of other colours.
        alpha = None
        if image.has_transparency_data:
            if image.mode.startswith("I"):
                raise ValueError("its 16 bits have a transparent level")
            grey = image.mode in ("1", "L", "LA")
            image = image.convert("LA" if grey else "RGBA")
            alpha = image.getchannel("A")
            # The colours themselves, not in front of white.
            image = image.convert("L" if grey else "RGB")
        levels = np.asarray(data.plain(image))
        if image.mode.startswith("I"):
            levels = np.asarray(image).astype("uint16")
    return Photograph(levels, alpha, profile)


def write(path, photograph):
    """Writes a `Photograph`, whole or not at all."""
    image = Image.fromarray(photograph.levels)
    if photograph.alpha is not None:
        image.putalpha(photograph.alpha)
    settings = {}
    if os.path.splitext(path)[1].lower() in (".jpg", ".jpeg", ".webp"):
        settings["quality"] = 95
    if photograph.profile is not None:
        settings["icc_profile"] = photograph.profile
    files.save(image, path, **settings)


def enlarge_photograph(model, photograph, tile=128):
    """A `Photograph` enlarged, of the same mode and depth.

    Args:
        model: As of `enlarge`.
        photograph: A `Photograph`. Its transparency is enlarged by Pillow's
            bicubic filter.
        tile: As of `enlarge`.

    Returns:
        A `Photograph`.
    """
    levels, alpha = photograph.levels, photograph.alpha
    grey = levels.ndim == 2
    colours = np.stack([levels] * 3, axis=2) if grey else levels
    colours = colours * np.float32(2.0 / np.iinfo(levels.dtype).max)
    colours -= np.float32(1.0)
    enlarged = enlarge(model, colours, tile, dtype=levels.dtype)
    if grey:
        enlarged = np.mean(enlarged, axis=2, dtype="float32")
        enlarged = np.rint(enlarged).astype(levels.dtype)
    if alpha is not None:
        size = enlarged.shape[1::-1]
        alpha = alpha.resize(size, Image.Resampling.BICUBIC)
    return Photograph(enlarged, alpha, photograph.profile)


def enlarge_files(model, paths, output, force=False, tile=128):
    """Enlarges image files, and folders of them.

    Names are kept, and what cannot be read is left out, see `files.convert`.

    Args:
        model: As of `enlarge`.
        paths: List of strings, files and folders.
        output: String, the folder to write to.
        force: Boolean, whether to overwrite files.
        tile: As of `enlarge`.

    Returns:
        A list of strings, what went wrong, a line for each file.

    Raises:
        ValueError: as of `files.convert`.
    """

    def work(source, target):
        before = read(source)
        after = enlarge_photograph(model, before, tile)
        write(target, after)
        sizes = [
            f"{photograph.levels.shape[1]} x {photograph.levels.shape[0]}"
            for photograph in (before, after)
        ]
        return f"{' -> '.join(sizes)}, {target}"

    return files.convert(work, paths, output, force, _ENDINGS)
