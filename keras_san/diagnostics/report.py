"""A diagnosis as text, CSV and pictures."""

import csv
import math

import numpy as np


def rows_of(diagnosis):
    """The measurements of each layer, in the order of the weights.

    Args:
        diagnosis: A `Diagnosis`.

    Returns:
        A list of dicts: `layer`, `shape` and `normalizer`, strings, and the
        fields of all records of a diagnosis, floats. Fields of gradients begin
        with `gradient_`; `gradient_over_bound` is the share of the bound that
        the gradient reaches.
    """
    gains = {row["layer"]: row for row in diagnosis.gains}
    gradients = {row["layer"]: row for row in diagnosis.gradients}
    bounds = {row["layer"]: float(row["bound"]) for row in diagnosis.bounds}
    rows = []
    for norms in diagnosis.norms:
        layer = norms["layer"]
        row = _dict(norms)
        if layer in gains:
            row |= _dict(gains[layer])
        found = _dict(gradients[layer])
        del found["layer"]
        row |= {f"gradient_{name}": value for name, value in found.items()}
        if layer in bounds:
            bound = bounds[layer]
            row["gradient_bound"] = bound
            row["gradient_over_bound"] = (
                row["gradient_norm"] / bound if bound else math.nan
            )
        rows.append(row)
    return rows


# Title, field, format and meaning of the columns to read.
_TABLE = (
    ("layer", "layer", "", ""),
    ("by", "normalizer", "", "normalizer, if there is one"),
    ("SAN", "san", ".3g", "SAN's norm of the kernel (Lemma 1)"),
    ("SN", "sn", ".3g", "its top singular value as a matrix"),
    ("exact", "operator", ".3g", "its operator norm, or a bound"),
    (
        "norm/aim",
        "norm_over_intended",
        ".3f",
        "norm over the one that the normalizer aims at; good: 1",
    ),
    (
        "var/He",
        "variance_kaiming",
        ".3g",
        "variance of the weights over that of He's start",
    ),
    ("gain", "gain", ".3g", "norm of output over input, on these images"),
    (
        "gain/SAN",
        "channel_gain_over_san",
        ".2f",
        "gain of the largest channel over SAN's norm; sparse inputs: up to 1",
    ),
    (
        "growth",
        "growth",
        ".2f",
        "growth of the signals with ReLU; good: 0.45 to 2.2",
    ),
    (
        "active",
        "effective",
        ".1f",
        "effective number of input channels; 1: as sparse as can be",
    ),
    ("gradient", "gradient_norm", ".3g", "norm of the kernel's gradient"),
    (
        "grad/max",
        "gradient_over_bound",
        ".2g",
        "gradient over its upper bound, from the norms; at most 1",
    ),
)


def text_of(diagnosis):
    """A diagnosis as text: table, legend, verdict and warnings.

    Args:
        diagnosis: A `Diagnosis`.

    Returns:
        A string of several lines.
    """
    table = [[title for title, *_ in _TABLE]]
    for row in rows_of(diagnosis):
        table.append([_cell(row, name, form) for _, name, form, _ in _TABLE])
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in table
    ]
    lines.append("")
    lines += [f"{title:8}  {text}" for title, _, _, text in _TABLE[1:]]
    lines.append("")
    lines.append(f"{diagnosis.verdict}: {diagnosis.reason}")
    lines += [f"warning: {warning}" for warning in diagnosis.warnings]
    return "\n".join(lines)


def write_csv(diagnosis, path):
    """Writes the measurements of each layer, as CSV.

    Args:
        diagnosis: A `Diagnosis`.
        path: String or path.
    """
    rows = rows_of(diagnosis)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(max(rows, key=len)))
        writer.writeheader()
        writer.writerows(rows)


def draw(diagnosis, path):
    """Draws the measurements of each layer, as PNG.

    Args:
        diagnosis: A `Diagnosis`.
        path: String or path of the file to write.
    """
    rows = rows_of(diagnosis)
    panels = [
        ("norm of the kernel", ("san", "sn", "bsn", "operator")),
        (
            "amplification of real signals",
            ("gain", "channel_gain_over_san", "growth"),
        ),
        (
            "norm of the gradient",
            ("gradient_norm", "gradient_raw_norm", "gradient_bound"),
        ),
        (
            "variance over its target",
            ("variance_lecun", "variance_xavier", "variance_kaiming"),
        ),
    ]
    figure, axes = figure_of(len(panels), (3 + 0.5 * len(rows), 2.8))
    names = [row["layer"] for row in rows]
    for ax, (title, fields) in zip(axes, panels):
        for field in fields:
            values = [row.get(field, math.nan) for row in rows]
            if any(0.0 < value < math.inf for value in values):
                ax.plot(names, values, marker="o", label=field)
        ax.set_ylabel(title)
        ax.grid(alpha=0.3)
        # Matplotlib warns of scales and legends of nothing.
        if ax.lines:
            ax.set_yscale("log")
            place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
            ax.legend(fontsize="small", **place)
        if diagnosis.layer is not None:
            ax.axvline(diagnosis.layer, color="crimson", alpha=0.25, lw=8)
    axes[-1].tick_params("x", rotation=90)
    figure.suptitle(f"{diagnosis.verdict}: {diagnosis.reason}", fontsize=9)
    figure.savefig(path, dpi=100)


def draw_sparsity(sparsity, path):
    """Draws histograms of channel norms, as PNG.

    Args:
        sparsity: The result of `channel_sparsity`.
        path: String or path of the file to write.
    """
    figure, axes = figure_of(len(sparsity), (6, 1.6))
    for ax, row in zip(axes, sparsity):
        shares = row["histogram"]
        edges = np.linspace(0.0, 1.0, len(shares) + 1)
        ax.stairs(shares, edges, fill=True)
        ax.set_yscale("log")
        ax.set_ylabel("share")
        ax.set_title(
            f"{row['layer']}: of {row['channels']} channels {row['zero']:.0%} "
            f"are zero, {row['nearly_zero']:.0%} nearly; energy of "
            f"{row['effective']:.1f}",
            fontsize=8,
        )
    axes[-1].set_xlabel("norm of a channel over that of the largest one")
    figure.savefig(path, dpi=100)


def figure_of(rows, size):
    """A Matplotlib figure of panels on top of each other.

    Args:
        rows: Int.
        size: Pair of floats, width and height of a panel in inches.

    Returns:
        The figure and a list of its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: that would keep every figure, and ask for a screen.
    width, height = size
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def _dict(record):
    return {
        name: str(record[name])
        if record.dtype[name].kind == "U"
        else float(record[name])
        for name in record.dtype.names
    }


def _cell(row, name, form):
    value = row.get(name, math.nan)
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else format(value, form)
