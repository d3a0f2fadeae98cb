"""Metrics of single images: PSNR and SSIM to a reference, NIQE without one.

There are functions of uint8 images, and Keras metrics over them. They are
NumPy in float64 on every backend, and follow the MATLAB code that papers on
super-resolution use.
"""

import dataclasses
import functools
import io
import math
import os

import keras
import numpy as np

from keras_san.checks import check_count
from keras_san.metrics.resizing import imresize

_BLOCK = 96
_FEATURES = 36
# The arrays of a model file, by the names that are common.
_FILE_NAMES = {
    "mean": "mu_pris_param",
    "covariance": "cov_pris_param",
    "window": "gaussian_window",
}


def psnr(a, b, crop=0, y=True):
    """Peak signal-to-noise ratio.

    Args:
        a: uint8 array `(height, width)` or `(height, width, 1 or 3)`.
        b: Another of the same shape.
        crop: Int >= 0, how many pixels to leave out at each border.
        y: Boolean, whether to compare RGB images by their luma alone, that of
            BT.601 in studio range, rounded as by MATLAB's `rgb2ycbcr`.
            Otherwise all channels count equally.

    Returns:
        A float in dB, infinity for equal images.

    Raises:
        ValueError: for any other arguments, or if `crop` leaves nothing.
    """
    a, b = _pair_of_planes(a, b, crop, y, least=1)
    error = np.square(a - b).mean()
    return 10.0 * math.log10(255.0**2 / error) if error else math.inf


def ssim(a, b, crop=0, y=True):
    """Structural similarity.

    The window is a Gaussian of 11x11 with a standard deviation of 1.5. Only
    windows that lie entirely inside of the image count.

    Args:
        a: uint8 array `(height, width)` or `(height, width, 1 or 3)`.
        b: Another of the same shape.
        crop: Int >= 0, how many pixels to leave out at each border.
        y: Boolean, whether to compare RGB images by their luma alone, as in
            `psnr`. Otherwise the result is the mean over the channels.

    Returns:
        A float of at most 1, which is the value for equal images.

    Raises:
        ValueError: for any other arguments, or if `crop` leaves less than
            11x11 pixels.

    Reference:
        [Wang et al., 2004](https://doi.org/10.1109/TIP.2003.819861).
    """
    a, b = _pair_of_planes(a, b, crop, y, least=11)
    smooth = functools.partial(_correlate, window=_gaussian_window(11, 1.5))
    mean_a, mean_b = smooth(a), smooth(b)
    covariance = smooth(a * b) - mean_a * mean_b
    variances = smooth(a * a + b * b) - mean_a**2 - mean_b**2
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    luminance = (2.0 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2.0 * covariance + c2) / (variances + c2)
    return float((luminance * structure).mean())


@keras.saving.register_keras_serializable("keras_san")
@dataclasses.dataclass(frozen=True, eq=False)
class NIQEModel:
    """The model of pristine photographs that NIQE compares with.

    Args:
        mean: Array of 36 features.
        covariance: Array `(36, 36)`.
        window: Array `(7, 7)`, the weights of local means.

    Raises:
        ValueError: for other shapes, and for NaN or infinity.
    """

    mean: np.ndarray
    covariance: np.ndarray
    window: np.ndarray

    def __post_init__(self):
        if np.shape(self.mean) == (1, _FEATURES):  # As the files have it.
            object.__setattr__(self, "mean", np.ravel(self.mean))
        shapes = (_FEATURES,), (_FEATURES, _FEATURES), (7, 7)
        for name, shape in zip(_FILE_NAMES, shapes):
            value = getattr(self, name)
            array = np.asarray(value)
            if array.dtype.kind not in "iuf" or array.shape != shape:
                raise ValueError(
                    f"`{name}` of a NIQE model must be numbers of shape "
                    f"{shape}. Received: {array.dtype} of shape {array.shape}"
                )
            if not np.all(np.isfinite(array)):
                raise ValueError(
                    f"`{name}` of a NIQE model must be finite. Received: "
                    f"{name}={value!r}"
                )
            object.__setattr__(self, name, array.astype("float64"))

    @classmethod
    def fit(cls, features):
        """Fits a model to the features of pristine blocks.

        Args:
            features: Array `(n, 36)`, as from `niqe_features`.

        Returns:
            A `NIQEModel`.

        Raises:
            ValueError: for fewer than two blocks that have all statistics.
        """
        whole = np.isfinite(features).all(axis=1).sum()
        if whole < 2:
            raise ValueError(
                "A NIQE model needs at least two sharp blocks of 96x96 "
                "pixels, neither flat nor as regular as a ramp: pass more or "
                f"larger images. Received: {whole}"
            )
        return cls(*_mean_and_covariance(features), _niqe_window())

    @classmethod
    def load(cls, path):
        """Loads a model from a file.

        Args:
            path: String or path, an `.npz` file with the arrays
                `mu_pris_param`, `cov_pris_param` and `gaussian_window`.

        Returns:
            A `NIQEModel`.

        Raises:
            ValueError: for any other file, or a model that is not valid.
        """
        with open(path, "rb") as file:
            content = io.BytesIO(file.read())
        try:
            with np.load(content) as file:
                arrays = {k: file[name] for k, name in _FILE_NAMES.items()}
        except Exception as error:  # A dozen kinds, by what is broken.
            raise ValueError(
                "A NIQE model must be an .npz file with the arrays "
                f"{', '.join(_FILE_NAMES.values())}. Received: {path} "
                f"({error})"
            ) from error
        return cls(**arrays)

    def save(self, path):
        """Saves the model for `load`, with the same bytes each time."""
        arrays = {v: getattr(self, k) for k, v in _FILE_NAMES.items()}
        arrays["mu_pris_param"] = self.mean[None]
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    def get_config(self):
        """The model as plain lists, for Keras to save."""
        return {k: v.tolist() for k, v in vars(self).items()}

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        return cls(**config)


def niqe(image, model=None, crop=0):
    """Natural image quality evaluator, lower is better.

    NIQE is the distance of the statistics of the image's blocks from those of
    pristine photographs. RGB images are measured by their luma, as in `psnr`
    and in papers on super-resolution; the authors' code uses `rgb2gray`, and
    you can pass an image that is converted so.

    Values of different models cannot be compared. The default model is not
    the authors', whose images are not free: `tools/fit_niqe.py` fitted it to
    the 200 training photographs of BSDS500.

    Flat parts, such as a clipped sky, have no statistics, and parts as regular
    as a ramp or a straight edge lack some: their contrasts to what is around,
    or the products of neighbours' contrasts, have only one sign. Such blocks
    are left out of the covariance, and what they lack (but for their shape
    parameters) out of the mean. The covariance of a single block is 0.

    Args:
        image: uint8 array `(height, width)` or `(height, width, 1 or 3)`. It
            is cut to whole blocks of 96x96 from the top left.
        model: A `NIQEModel`, the path of one, or `None` for the default.
        crop: Int >= 0, how many pixels to leave out at each border.

    Returns:
        A float.

    Raises:
        ValueError: for any other arguments, if `crop` leaves no block, or if
            all blocks are flat or regular.

    Reference:
        [Mittal et al., 2013](https://doi.org/10.1109/LSP.2012.2227726).
    """
    model = _get_model(model)
    features = niqe_features(image, crop, window=model.window)
    if not np.isfinite(features).all(axis=1).any():
        raise ValueError(
            "NIQE needs a block of 96x96 pixels that has contrasts, and "
            "products of neighbours' contrasts, of both signs. Flat parts, "
            "ramps and straight edges have not. Received: an image of shape "
            f"{np.shape(image)} without such a block"
        )
    mean, covariance = _mean_and_covariance(features)
    gap = model.mean - mean
    inverse = np.linalg.pinv((model.covariance + covariance) / 2.0)
    return math.sqrt(max(0.0, gap @ inverse @ gap))


def fit_niqe(images, sharpness=0.75):
    """Fits a model of NIQE to photographs.

    Args:
        images: Iterable of pristine photographs, as `niqe` takes them.
        sharpness: Float in [0, 1), see `niqe_features`.

    Returns:
        A `NIQEModel`.

    Raises:
        ValueError: for any other arguments, or too few images.
    """
    features = [niqe_features(image, 0, sharpness) for image in images]
    return NIQEModel.fit(np.concatenate([np.zeros((0, _FEATURES)), *features]))


def niqe_features(image, crop=0, sharpness=None, window=None):
    """The features of NIQE: 36 statistics of each block of 96x96 pixels.

    Args:
        image: As in `niqe`.
        crop: As in `niqe`.
        sharpness: `None`, or a float in [0, 1): only those blocks count whose
            mean local deviation exceeds this share of the sharpest block's.
        window: Array `(7, 7)` that adds up to 1, the weights of local means;
            `None` for a Gaussian with a standard deviation of 7 / 6.

    Returns:
        A float64 array `(blocks, 36)`. Flat and regular blocks, see `niqe`,
        have NaN in it.

    Raises:
        ValueError: as in `niqe`, but not for such blocks, and for any other
            `sharpness`.
    """
    if sharpness is not None and not 0.0 <= sharpness < 1.0:
        raise ValueError(
            "`sharpness` must be None or in [0, 1). Received: "
            f"sharpness={sharpness!r}"
        )
    planes = _crop(_planes("image", image, True), crop, least=_BLOCK)
    height, width = (n - n % _BLOCK for n in planes.shape[:2])
    levels = planes[:height, :width]
    window = _niqe_window() if window is None else window
    features, size = [], _BLOCK
    for scale in range(2):
        padded = np.pad(levels, ((3, 3), (3, 3), (0, 0)), "edge")
        mean = _correlate(padded, window)
        variance = _correlate(padded**2, window) - mean**2
        deviation = np.sqrt(np.abs(variance))
        rest = levels - mean
        # Where the image is flat, rounding is not to be taken for structure.
        rest[np.abs(rest) < 1e-9] = 0.0
        features.append(_statistics(_blocks(rest / (deviation + 1.0), size)))
        if scale == 0:
            sharp = _blocks(deviation, size).mean(axis=(1, 2))
        levels, size = imresize(levels, 0.5), size // 2
    features = np.concatenate(features, axis=1)
    if sharpness is not None:
        features = features[sharp > sharpness * sharp.max()]
    return features


def _blocks(plane, size):
    rows, columns = plane.shape[0] // size, plane.shape[1] // size
    blocks = plane.reshape(rows, size, columns, size).swapaxes(1, 2)
    return blocks.reshape(-1, size, size)


def _statistics(blocks):
    """The 18 features of a scale, of normalized luminance `(n, size, size)`."""
    alpha, left, right, _ = _fit_aggd(blocks)
    columns = [alpha, (left + right) / 2.0]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        # Neighbours beyond the block's border are those at the other end.
        products = blocks * np.roll(blocks, shift, axis=(1, 2))
        alpha, left, right, ratio = _fit_aggd(products)
        columns += [alpha, (right - left) * ratio, left, right]
    return np.stack(columns, axis=1)


def _fit_aggd(samples):
    """Fits asymmetric generalized Gaussians, one per block, by moments.

    Returns:
        Arrays of the shape parameter, the scale on the left, the scale on the
        right, and the factor on their difference that gives the mean.
    """
    samples = samples.reshape(len(samples), -1)
    squares = samples**2
    with np.errstate(invalid="ignore"):  # Blocks without a negative value.
        left, right = (
            np.sqrt((squares * side).sum(axis=1) / side.sum(axis=1))
            for side in (samples < 0.0, samples > 0.0)
        )
        moments = np.abs(samples).mean(axis=1) ** 2 / squares.mean(axis=1)
    ratio = left / right
    moments *= (ratio**3 + 1.0) * (ratio + 1.0) / (ratio**2 + 1.0) ** 2
    alphas, limits, gammas = _aggd_table()
    # NaN gets the least alpha, as from the authors' code.
    index = np.searchsorted(limits, np.nan_to_num(moments))
    one, two, three = gammas[:, index]
    factor = np.sqrt(one / three)
    return alphas[index], left * factor, right * factor, two / one


@functools.lru_cache
def _aggd_table():
    """Shape parameters, the moments where the next is nearer, and gammas."""
    alphas = np.arange(200, 10_001) / 1000.0
    gammas = np.array(
        [[math.gamma(k / alpha) for alpha in alphas] for k in (1, 2, 3)]
    )
    moments = gammas[1] ** 2 / (gammas[0] * gammas[2])
    return alphas, (moments[1:] + moments[:-1]) / 2.0, gammas


def _mean_and_covariance(features):
    whole = features[np.isfinite(features).all(axis=1)]
    centred = whole - whole.mean(axis=0)
    covariance = centred.T @ centred / max(1, len(whole) - 1)
    return np.nanmean(features, axis=0), covariance


def _get_model(model):
    if model is None:
        return _default_model()
    if isinstance(model, (str, os.PathLike)):
        return NIQEModel.load(model)
    if not isinstance(model, NIQEModel):
        raise ValueError(
            "`model` must be a NIQEModel, the path of one, or None. "
            f"Received: model={model!r}"
        )
    return model


@functools.lru_cache
def _default_model():
    return NIQEModel.load(os.path.join(os.path.dirname(__file__), "niqe.npz"))


def _gaussian_window(size, deviation):
    x = (np.arange(size) - (size - 1) / 2.0) / deviation
    line = np.exp(-(x**2) / 2.0)
    return np.outer(line, line) / line.sum() ** 2


def _niqe_window():
    return _gaussian_window(7, 7.0 / 6.0)


def _correlate(planes, window):
    """The weighted sums of all windows inside of planes `(h, w, c)`."""
    # A Gaussian is of rank 1: one pass along each axis.
    u, values, v = np.linalg.svd(window)
    output = 0.0
    for rank in np.flatnonzero(values > 1e-12 * values[0]):
        rows = _correlate_axis(planes, u[:, rank] * values[rank], 0)
        output = output + _correlate_axis(rows, v[rank], 1)
    return output


def _correlate_axis(planes, weights, axis):
    n = planes.shape[axis] - len(weights) + 1
    lines = np.moveaxis(planes, axis, 0)
    output = sum(w * lines[i : i + n] for i, w in enumerate(weights))
    return np.moveaxis(output, 0, axis)


def _planes(name, image, y):
    """A float64 array `(height, width, channels)`, by luma if `y`."""
    image = np.asarray(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or channels not in (1, 3)
        or 0 in image.shape
    ):
        raise ValueError(
            f"`{name}` must be a uint8 image of shape (height, width) or "
            f"(height, width, 1 or 3). Received: {image.dtype} of shape "
            f"{image.shape}"
        )
    image = image.reshape(*image.shape[:2], channels)
    if y and channels == 3:
        # In whole numbers, so that nothing but the last step rounds.
        luma = image.astype(np.int64) @ [65481, 128553, 24966]
        image = ((luma + 127_500) // 255_000 + 16)[:, :, None]
    return image.astype("float64")


def _crop(planes, crop, least):
    check_count("crop", crop, least=0)
    height, width = (n - 2 * crop for n in planes.shape[:2])
    if min(height, width) < least:
        raise ValueError(
            f"At least {least}x{least} pixels must remain: use a larger image "
            f"or a smaller `crop`. Received: crop={crop}, an image of "
            f"{planes.shape[0]}x{planes.shape[1]}"
        )
    return planes[crop : crop + height, crop : crop + width]


def _pair_of_planes(a, b, crop, y, least):
    if np.shape(a) != np.shape(b):
        raise ValueError(
            "The images must be of one shape. Received: shapes "
            f"{np.shape(a)} and {np.shape(b)}"
        )
    planes = _planes("a", a, y), _planes("b", b, y)
    return [_crop(image, crop, least) for image in planes]


class _ImageMetric(keras.metrics.Mean):
    """The mean of a function over images."""

    _compares = True

    def __init__(self, function, name, dtype, **settings):
        super().__init__(name=name, dtype=dtype)
        check_count("crop", settings["crop"], least=0)
        self._function = functools.partial(function, **settings)
        self._settings = settings

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds images.

        Args:
            y_true: Batch of images, uint8, or floats in [-1, 1], beyond which
                they are clipped.
            y_pred: Another batch.
            sample_weight: `None`, or a number for each image.

        Raises:
            ValueError: for anything else, and for tensors without values, as
                in a graph or a compiled function.
        """
        with keras.SymbolicScope() as scope:
            # On JAX and PyTorch `evaluate` builds metrics by a call with
            # stand-ins first, whose results nobody sees.
            if scope.original_scope is not None:
                return
        batches = [_levels("y_pred", y_pred)]
        if self._compares:
            batches.insert(0, _levels("y_true", y_true))
            if batches[0].shape != batches[1].shape:
                raise ValueError(
                    "`y_true` and `y_pred` must be of one shape. Received: "
                    f"shapes {batches[0].shape} and {batches[1].shape}"
                )
        values = [self._function(*images) for images in zip(*batches)]
        super().update_state(np.array(values, "float32"), sample_weight)

    def get_config(self):
        return {**super().get_config(), **self._settings}


def _levels(name, images):
    """A batch of uint8 images in NumPy."""
    try:
        images = np.asarray(keras.ops.convert_to_numpy(images))
    except Exception as error:  # Each backend has its own.
        raise ValueError(
            f"`{name}` must have values, since metrics of images run in "
            "NumPy. Compile the model with `run_eagerly=True`, or call the "
            f"metric yourself. Received: {images}"
        ) from error
    if images.ndim != 4:
        raise ValueError(
            f"`{name}` must be of shape (n, height, width, channels). "
            f"Received: shape {images.shape}"
        )
    if images.dtype == np.uint8:
        return images
    if not keras.backend.is_float_dtype(images.dtype.name):
        raise ValueError(
            f"`{name}` must be of uint8 or of floats in [-1, 1]. Received: "
            f"dtype {images.dtype}"
        )
    images = np.rint((images.astype("float64") + 1.0) * 127.5)
    if not np.all(np.isfinite(images)):
        raise ValueError(
            f"`{name}` must be finite. Received: NaN or infinity in images "
            f"of shape {images.shape}"
        )
    return np.clip(images, 0.0, 255.0).astype(np.uint8)


@keras.saving.register_keras_serializable("keras_san")
class PSNR(_ImageMetric):
    """The mean of `psnr` over images; infinity if any two are equal.

    Args:
        crop: As in `psnr`.
        y: As in `psnr`.
        name: String.
        dtype: Of the mean.
    """

    def __init__(self, crop=0, y=True, name="psnr", dtype=None):
        super().__init__(psnr, name, dtype, crop=crop, y=y)


@keras.saving.register_keras_serializable("keras_san")
class SSIM(_ImageMetric):
    """The mean of `ssim` over images.

    Args:
        crop: As in `ssim`.
        y: As in `ssim`.
        name: String.
        dtype: Of the mean.
    """

    def __init__(self, crop=0, y=True, name="ssim", dtype=None):
        super().__init__(ssim, name, dtype, crop=crop, y=y)


@keras.saving.register_keras_serializable("keras_san")
class NIQE(_ImageMetric):
    """The mean of `niqe` over the images `y_pred`; `y_true` may be `None`.

    Args:
        model: As in `niqe`.
        crop: As in `niqe`.
        name: String.
        dtype: Of the mean.
    """

    _compares = False

    def __init__(self, model=None, crop=0, name="niqe", dtype=None):
        if isinstance(model, dict):  # Of `get_config`.
            model = keras.saving.deserialize_keras_object(model)
        if isinstance(model, os.PathLike):
            model = os.fspath(model)
        self._model = model
        super().__init__(niqe, name, dtype, model=_get_model(model), crop=crop)

    def get_config(self):
        model = keras.saving.serialize_keras_object(self._model)
        return {**super().get_config(), "model": model}
