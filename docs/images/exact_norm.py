"""Draws what the bounds of `keras_san.spectra` rule out, for the guide.

    python docs/images/exact_norm.py

writes `docs/images/exact_norm.png`, and prints the numbers that
`docs/exact-norm.md` quotes.
"""

import os

import matplotlib
import numpy as np

from keras_san import norms, spectra

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

SHAPE = (3, 3, 256, 512)
IMAGE = (32, 32)


def he_normal(seed):
    """A kernel as He's initializer draws it."""
    deviation = np.sqrt(2.0 / np.prod(SHAPE[:-1]))
    return np.random.default_rng(seed).normal(scale=deviation, size=SHAPE)


def main():
    """Computes bounds and moduli of all filters, and draws them."""
    kernel = he_normal(seed=0)
    found = float(norms.sparsity_aware_norm(kernel.astype("float32"), IMAGE))
    filters = kernel.reshape(-1, SHAPE[2] * SHAPE[3])
    n = filters.shape[1]

    # Bound (a) of all, in the groups of neighbours that the search sorts.
    sums = np.abs(filters).sum(axis=0)
    num_groups, num_filters, _ = spectra._EFFORTS[0]
    groups = sums.reshape(-1, spectra._group(n))
    chosen = np.argsort(-groups.max(axis=1))[:num_groups]
    left_out = np.delete(groups, chosen, axis=0).max()

    # Bound (b) of the filters in those, by the autocorrelation: the transform
    # on a grid of twice the kernel holds all lags.
    index = chosen[:, None] * groups.shape[1] + np.arange(groups.shape[1])
    some = filters[:, index.ravel()].reshape(*SHAPE[:2], -1)
    power = np.abs(np.fft.fft2(some, (5, 5), axes=(0, 1))) ** 2
    lags = np.fft.ifft2(power, axes=(0, 1)).real
    roots = np.sort(np.sqrt(np.abs(lags).sum(axis=(0, 1))))[::-1]

    # What all of it is about, of every filter: only to be drawn.
    moduli = np.concatenate(
        [
            np.abs(np.fft.rfft2(part, IMAGE, axes=(0, 1))).max(axis=(0, 1))
            for part in np.split(kernel.reshape(*SHAPE[:2], n), 64, axis=-1)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(found, moduli.max(), rtol=1e-6)
    assert left_out < found and roots[num_filters] < found
    looked_at = some.shape[-1]
    print(f"filters: {n:,}")
    print(f"norm: {found:.6f}, by all transforms: {moduli.max():.6f}")
    print(f"bound (a) above it: {np.sum(sums > found):,}")
    print(f"whose bound (b) is computed: {looked_at:,}")
    print(f"largest bound (a) left out: {left_out:.4f}")
    least = (1.0 - 1e-6) * found  # In float32 a bound may be the norm itself.
    print(f"bound (b) not below the norm: {np.sum(roots > least):,}")
    print(f"largest bound (b) left out: {roots[num_filters]:.4f}")
    print(f"whose spectrum is computed: {num_filters:,}")

    above = []
    for seed in range(10):
        kernel = he_normal(seed)
        norm = norms.sparsity_aware_norm(kernel.astype("float32"), IMAGE)
        above.append(int(np.sum(np.abs(kernel).sum(axis=(0, 1)) > norm)))
    print(f"bound (a) above the norm, seeds 0 to 9: {sorted(above)}")

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    order = np.argsort(-sums)
    rank = np.arange(1, n + 1)
    axes[0].plot(
        rank,
        moduli[order],
        ".",
        color="tab:gray",
        markersize=1.5,
        alpha=0.5,
        label="largest modulus",
    )
    axes[0].plot(rank, sums[order], "tab:blue", label="bound (a), sum of |w|")
    axes[0].set_title(f"All {n:,} filters")
    rank = np.arange(1, looked_at + 1)
    axes[1].plot(rank, roots, "tab:green", label="bound (b), autocorrelation")
    axes[1].axvspan(
        0.9,
        num_filters,
        color="tab:orange",
        alpha=0.4,
        label="spectrum computed",
    )
    axes[1].set_title(f"The {looked_at:,} of the {num_groups} best groups")
    for ax in axes:
        ax.axhline(
            found, color="tab:red", linewidth=1, label="norm that was found"
        )
        ax.set_ylim(0.0, 1.1 * max(sums.max(), found))
        ax.set_xscale("log")
        ax.set_xlabel("filters, sorted by their bound")
        ax.legend(loc="lower left", fontsize="small")
    figure.savefig(os.path.splitext(__file__)[0] + ".png", dpi=100)


if __name__ == "__main__":
    main()
