"""Enlarges image files of any size and kind by a network."""

import numpy as np
from PIL import Image, ImageOps

from experiments import data, files

# What an enlarged file keeps as its ending; others become PNG.
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")


def enlarge(model, image, tile=128, overlap=16, dtype="uint8"):
    """Enlarges a float array `(height, width, 3)` in [-1, 1], tile by tile.

    So memory is bounded. Neighbouring tiles are joined in the middle of what
    they share, where both have seen most of what a pixel depends on. An
    `overlap`, half of that, of as many pixels as the network looks to each side
    leaves no difference (20 for 8 residual blocks, where 8 leave one level in
    255). `dtype`, that of the result, is `"uint8"` or `"uint16"`.
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


def read(path):
    """Reads an image file of any mode, upright.

    Returns:
        A uint8 array `(height, width, 3)`, or, of greyscale images
        `(height, width)`, uint8 or uint16 (Pillow reads more than 8 bits only
        where there is no colour); a PIL image of the transparency or `None`;
        and the bytes of the ICC profile or `None`.
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
    return levels, alpha, profile


def enlarge_levels(model, levels, tile=128):
    """Enlarges an array as of `read`, to one of the same type."""
    grey = levels.ndim == 2
    colours = np.stack([levels] * 3, axis=2) if grey else levels
    colours = colours * np.float32(2.0 / np.iinfo(levels.dtype).max)
    colours -= np.float32(1.0)
    enlarged = enlarge(model, colours, tile, dtype=levels.dtype)
    if grey:
        enlarged = np.mean(enlarged, axis=2, dtype="float32")
        enlarged = np.rint(enlarged).astype(levels.dtype)
    return enlarged


def enlarge_files(model, paths, output, force=False, tile=128):
    """Enlarges files, and folders of them, see `files.convert`.

    Modes, transparency and profiles are kept.
    """

    def work(source, target):
        levels, alpha, profile = read(source)
        image = Image.fromarray(enlarge_levels(model, levels, tile))
        if alpha is not None:
            image.putalpha(alpha.resize(image.size, Image.Resampling.BICUBIC))
        settings = {} if profile is None else {"icc_profile": profile}
        if target.lower().endswith((".jpg", ".jpeg", ".webp")):
            settings["quality"] = 95
        files.save(image, target, **settings)
        height, width = levels.shape[:2]
        return f"{width} x {height} -> {image.width} x {image.height}, {target}"

    return files.convert(work, paths, output, force, _ENDINGS)
