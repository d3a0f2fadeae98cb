"""Measures ways to enlarge photographs, and shows them side by side."""

import csv
import os

import keras
import numpy as np
from PIL import Image, ImageDraw

from experiments import batches, upscaling
from keras_san import callbacks
from keras_san.metrics import image_quality
from keras_san.metrics.resizing import imresize

# Published for 4x on BSD100: PSNR in dB, NIQE under the model of its authors
# (Kligvasser and Michaeli, 2021, Table 2).
PUBLISHED = {
    "SRGAN": (25.18, 3.40),
    "ENET": (24.93, 4.52),
    "ESRGAN": (25.31, 3.64),
    "ESRGAN with SN": (25.69, 3.56),
    "SAN, 0.1": (25.32, 3.21),
    "SAN, 0.01": (26.15, 3.44),
}


def evaluate(pairs, models, crop, niqe_model=None):
    """Enlarges and measures photographs by bicubic interpolation and models.

    Args:
        pairs: A `photographs.Pairs`.
        models: Dict from names to Keras models.
        crop: Int, the pixels at each border that are not looked at.
        niqe_model: What `keras_san.metrics.image_quality.niqe` takes.

    Returns:
        A dict from names, `"bicubic"` the first and `"truth"` the last, to
        arrays `(photographs, 3)` of PSNR in dB, SSIM and NIQE; and a dict of
        the enlarged photographs, lists of uint8 arrays.

    Raises:
        ValueError: if a photograph cannot be measured, as it is too small.
    """
    made = {"bicubic": [imresize(low, pairs.scale) for low in pairs.small]}
    for name, model in models.items():
        made[name] = [
            upscaling.enlarge(model, batches.to_float(low))
            for low in pairs.small
        ]
    made["truth"] = pairs.large
    scores = {}
    for method, images in made.items():
        rows = []
        for name, truth, image in zip(pairs.names, pairs.large, images):
            try:
                rows.append(
                    [
                        image_quality.psnr(truth, image, crop),
                        image_quality.ssim(truth, image, crop),
                        image_quality.niqe(image, niqe_model, crop),
                    ]
                )
            except ValueError as error:
                raise ValueError(
                    f"{name!r} by {method} cannot be measured: {error}"
                ) from error
        scores[method] = np.array(rows)
    return scores, made


def print_table(scores):
    """Prints the means of what `evaluate` returns."""
    print(f"{'':24}  PSNR (dB)    SSIM   NIQE")
    for name, values in scores.items():
        psnr, ssim, niqe = values.mean(axis=0)
        print(f"{name:24}  {psnr:9.2f}  {ssim:.4f}  {niqe:5.2f}")


def write_table(path, names, scores):
    """Writes what `evaluate` returns, a row for each photograph, as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["photograph", "method", "psnr", "ssim", "niqe"])
        for method, values in scores.items():
            for name, row in zip(names, values):
                writer.writerow([name, method, *(f"{v:.5f}" for v in row)])


def draw_perception_distortion(scores, path, published=False):
    """Draws NIQE over SSIM, and over PSNR, as the paper's Figure 9.

    Args:
        scores: What `evaluate` returns.
        path: String, the PNG to write.
        published: Boolean, whether to add the points of `PUBLISHED`, which
            exist for PSNR only.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    points = {name: v.mean(axis=0) for name, v in scores.items()}
    points.pop("truth")
    for axes, place, label in zip(panels, (1, 0), ("SSIM", "PSNR, dB")):
        for name, values in points.items():
            axes.plot(values[place], values[2], "o", markersize=9, label=name)
        axes.set_xlabel(f"{label} (distortion: more is better)")
        axes.grid(alpha=0.3)
    if published:
        for marker, (name, values) in zip("x+*^sD", PUBLISHED.items()):
            panels[1].plot(
                *values,
                marker,
                color="black",
                fillstyle="none",
                label=f"{name} (published, BSD100)",
            )
    panels[0].set_ylabel("NIQE (perception: less is better)")
    panels[1].legend(
        fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
    )
    figure.savefig(path, dpi=110)


def sheet(columns, size=160, enlarge=2, rows=4):
    """Puts windows of photographs side by side, as the paper's Figure 10.

    Args:
        columns: Dict from captions to lists of uint8 arrays, the same
            photographs in each, the last one their truth. The window of each
            is where the truth has most detail.
        size: Int, the height and width of the windows, or less where a
            photograph is smaller.
        enlarge: Int, by how much pixels are enlarged to be seen.
        rows: Int, how many photographs are shown at most.

    Returns:
        A uint8 array `(height, width, 3)`.
    """
    gap, caption = 4, 16
    truths = list(columns.values())[-1][:rows]
    side = size * enlarge + gap
    picture = Image.new(
        "RGB",
        (side * len(columns) + gap, side * len(truths) + gap + caption),
        "white",
    )
    draw = ImageDraw.Draw(picture)
    windows = [_most_detailed(truth, size) for truth in truths]
    for column, (name, images) in enumerate(columns.items()):
        left = gap + column * side
        draw.text((left, 2), name, "black")
        for row, window in enumerate(windows):
            part = Image.fromarray(np.ascontiguousarray(images[row][window]))
            part = part.resize(
                (part.width * enlarge, part.height * enlarge),
                Image.Resampling.NEAREST,
            )
            picture.paste(part, (left, caption + row * side))
    return np.asarray(picture)


def _most_detailed(image, size):
    grey = image.mean(axis=2)
    best, place = -1.0, None
    height, width = (min(size, n) for n in grey.shape)
    for y in _steps(grey.shape[0] - height, height // 2):
        for x in _steps(grey.shape[1] - width, width // 2):
            window = slice(y, y + height), slice(x, x + width)
            # Not the middle of any part: contrast at one pixel's distance.
            part = grey[window]
            detail = np.abs(np.diff(part, axis=0)).mean()
            detail += np.abs(np.diff(part, axis=1)).mean()
            if detail > best:
                best, place = detail, window
    return place


def _steps(spare, step):
    return sorted({*range(0, spare + 1, max(1, step)), spare})


class ComparisonSheet(keras.callbacks.Callback):
    """Saves what a training makes of photographs beside the truth, as PNG.

    Args:
        folder: String, where `comparison.png` (the latest) and
            `comparison_0001.png`, ... are written. It is created if missing.
        pairs: A `photographs.Pairs`.
        before: A generator to compare with, or `None`.
    """

    def __init__(self, folder, pairs, before=None, rows=4):
        super().__init__()
        self.folder = folder
        self.pairs = pairs
        self.rows = rows
        self.latest = None
        small = pairs.small[:rows]
        self.columns = {
            "bicubic": [imresize(low, pairs.scale) for low in small]
        }
        if before is not None:
            self.columns["pixel loss alone"] = [
                callbacks.enlarge(before, low) for low in small
            ]

    def picture(self, model):
        """The picture, as a uint8 array."""
        columns = dict(self.columns)
        columns["trained"] = [
            callbacks.enlarge(model, low)
            for low in self.pairs.small[: self.rows]
        ]
        columns["truth"] = self.pairs.large
        return sheet(columns, rows=self.rows)

    def on_epoch_end(self, epoch, logs=None):
        if not getattr(self.model, "is_chief", True):
            return
        os.makedirs(self.folder, exist_ok=True)
        self.latest = picture = self.picture(self.model)
        for name in (f"comparison_{epoch + 1:04d}.png", "comparison.png"):
            Image.fromarray(picture).save(os.path.join(self.folder, name))
