"""Measures ways to enlarge photographs, and shows them side by side."""

import csv
import itertools
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
    """Enlarges and measures photographs, `crop` pixels of a border left out.

    Returns:
        A dict from names, `"bicubic"`, those of the dict `models`, `"truth"`,
        to arrays `(photographs, 3)` of PSNR in dB, SSIM and NIQE; and a dict
        from them to lists of uint8 arrays.
    """
    made = {"bicubic": bicubic(pairs)}
    for name, model in models.items():
        made[name] = [
            upscaling.enlarge(model, batches.to_float(pair.small))
            for pair in pairs
        ]
    made["truth"] = [pair.large for pair in pairs]
    scores = {method: [] for method in made}
    for method, images in made.items():
        for (name, _, truth), image in zip(pairs, images):
            try:
                psnr = image_quality.psnr(truth, image, crop)
                ssim = image_quality.ssim(truth, image, crop)
                niqe = image_quality.niqe(image, niqe_model, crop)
            except ValueError as error:
                raise ValueError(
                    f"{name!r} by {method} cannot be measured: {error}"
                ) from error
            scores[method].append((psnr, ssim, niqe))
    return {name: np.array(rows) for name, rows in scores.items()}, made


def bicubic(pairs):
    """The photographs, enlarged by bicubic interpolation."""
    return [imresize(pair.small, pair.scale) for pair in pairs]


def print_table(scores):
    """Prints the means of what `evaluate` returns."""
    print(f"{'':24}  PSNR (dB)    SSIM   NIQE")
    for name, values in scores.items():
        psnr, ssim, niqe = values.mean(axis=0)
        print(f"{name:24}  {psnr:9.2f}  {ssim:.4f}  {niqe:5.2f}")


def write_table(path, pairs, scores):
    """Writes what `evaluate` returns, a row for each photograph, as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["photograph", "method", "psnr", "ssim", "niqe"])
        for method, values in scores.items():
            for pair, row in zip(pairs, values):
                writer.writerow([pair.name, method, *(f"{v:.5f}" for v in row)])


def draw_perception_distortion(scores, path, published=False):
    """Draws NIQE over SSIM, and over PSNR, as the paper's Figure 9.

    With `published` it adds the points of `PUBLISHED`.
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
        black = {"color": "black", "fillstyle": "none"}
        for marker, (name, point) in zip("x+*^sD", PUBLISHED.items()):
            label = f"{name} (published, BSD100)"
            panels[1].plot(*point, marker, label=label, **black)
    panels[0].set_ylabel("NIQE (perception: less is better)")
    panels[1].legend(
        fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
    )
    figure.savefig(path, dpi=110)


def sheet(columns, size=160, enlarge=2, rows=4):
    """Puts windows of photographs side by side, as the paper's Figure 10.

    `columns` is a dict from captions to lists of uint8 arrays, the same
    photographs in each, the last one their truth. The window of each, `size`
    pixels high and wide, is where the truth has most detail.
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
            part = images[row][window].repeat(enlarge, 0).repeat(enlarge, 1)
            place = left, caption + row * side
            picture.paste(Image.fromarray(part), place)
    return np.asarray(picture)


def _most_detailed(image, size):
    grey = image.mean(axis=2)
    axes = []
    for length in grey.shape:
        side = min(size, length)
        starts = range(0, length - side, max(1, side // 2))
        axes.append([slice(i, i + side) for i in (*starts, length - side)])

    def detail(window):
        # Contrast at one pixel's distance.
        return sum(np.abs(np.diff(grey[window], axis=a)).mean() for a in (0, 1))

    return max(itertools.product(*axes), key=detail)


class ComparisonSheet(keras.callbacks.Callback):
    """Saves what a training makes of a few photographs beside the truth.

    As `comparison_0001.png`, ... and `comparison.png`, the latest; with what a
    generator made `before`.
    """

    def __init__(self, folder, pairs, before=None):
        super().__init__()
        self.folder = folder
        self.pairs = pairs[:4]
        self.latest = None
        self.columns = {"bicubic": bicubic(self.pairs)}
        if before is not None:
            self.columns["pixel loss alone"] = self.enlarged(before)

    def enlarged(self, model):
        """The photographs, enlarged by a model or GAN."""
        return [callbacks.enlarge(model, pair.small) for pair in self.pairs]

    def on_epoch_end(self, epoch, logs=None):
        os.makedirs(self.folder, exist_ok=True)
        truth = [pair.large for pair in self.pairs]
        trained = self.enlarged(self.model)
        self.latest = sheet(
            {**self.columns, "trained": trained, "truth": truth}
        )
        for name in (f"comparison_{epoch + 1:04d}.png", "comparison.png"):
            path = os.path.join(self.folder, name)
            Image.fromarray(self.latest).save(path)
