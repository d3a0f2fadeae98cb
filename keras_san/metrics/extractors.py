"""Classifiers whose features and logits the metrics compare.

An extractor is a callable from images to a pair of float arrays, features
`(n, d)` and logits `(n, classes)`. Values of different extractors cannot be
compared, so each has a `name`, and a `label` that begins the names of its
values in logs; the label of the Inception network is empty.
"""

import os
import tarfile

import keras
import numpy as np
from keras import ops

from keras_san.checks import check_count, check_keras_3

INCEPTION = "https://tfhub.dev/tensorflow/tfgan/eval/inception/1"


class KerasExtractor:
    """An extractor made of a Keras classifier.

    Its values are labelled `judge_`: they cannot be compared with published
    ones.

    Args:
        model: A Keras model, or the path of one, which takes images
            `(n, height, width, channels)` in [-1, 1].
        features: String, the layer whose output `(n, d)` FID and KID use.
        logits: String, the layer whose output `(n, classes)`, before any
            softmax, the Inception score uses.
        batch_size: Int, how many images it takes at once.

    Raises:
        ValueError: if there is no such file or layer, or the output of a
            layer has another shape.
    """

    label = "judge_"

    def __init__(
        self, model, features="features", logits="logits", batch_size=250
    ):
        self.name = "model"
        check_keras_3(model)
        if not isinstance(model, keras.Model):
            self.name = os.path.basename(model)
            model = _load(model)
        for name in (features, logits):
            if name not in [layer.name for layer in model.layers]:
                raise ValueError(
                    f"The extractor has no layer named {name!r}. Pass the "
                    "names of its layers: KerasExtractor(model, "
                    "features=..., logits=...). Received: a model with the "
                    f"layers {[layer.name for layer in model.layers]}"
                )
        if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
            raise ValueError(
                "The extractor must take images (n, height, width, channels). "
                "Received: a model with inputs of the shapes "
                f"{[tuple(x.shape) for x in model.inputs]}"
            )
        outputs = [model.get_layer(name).output for name in (features, logits)]
        if any(len(output.shape) != 2 for output in outputs):
            raise ValueError(
                "Features and logits must have the shape (n, number of them): "
                "take a layer after the pooling. Received: outputs of the "
                f"shapes {[tuple(output.shape) for output in outputs]}"
            )
        layer = model.get_layer(logits)
        activation = getattr(layer, "activation", None)
        if isinstance(layer, keras.layers.Softmax) or (
            activation is keras.activations.softmax
        ):
            raise ValueError(
                "The Inception score needs logits, of which it takes a "
                "softmax itself. Name the layer before the softmax, or build "
                f"the layer without it. Received: logits={logits!r}"
            )
        self.batch_size = batch_size
        self.model = keras.Model(model.inputs[0], outputs)

    def __call__(self, images):
        """The `(features, logits)` of images as `to_levels` takes them."""
        height, width, channels = self.model.input_shape[1:]

        def extract(batch):
            batch = to_levels(batch)
            batch = _resize(batch, height, width, channels)
            return self.model.predict_on_batch(batch)

        return _in_batches(extract, images, self.batch_size)


class InceptionExtractor:
    """The Inception network that published scores come from.

    The graph that TF-GAN distributes, with OpenAI's weights of 2015. Images
    are resized to 299 x 299, bilinear without antialiasing.

    Args:
        path: String, a folder that holds a copy of the module
            (`saved_model.pb` is in it), or `None` to download it, unless it
            is in Keras' cache.
        batch_size: Int, how many images it takes at once.
        file_hash: String, the MD5 or SHA-256 that the downloaded archive must
            have, or `None` not to check it: none is published.

    Raises:
        ValueError: if the module cannot be downloaded or loaded.
    """

    label = ""
    name = "inception"

    def __init__(self, path=None, batch_size=50, file_hash=None):
        self.batch_size = batch_size
        try:
            import tensorflow as tf

            folder = _download(file_hash) if path is None else path
            self.module = tf.saved_model.load(folder)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                "The Inception network cannot be loaded. Connect to the "
                f"internet, pass the folder of a copy of {INCEPTION}, "
                "or pass a Keras classifier of your own. "
                f"Received: path={path!r} ({type(error).__name__}: {reason})"
            ) from error

    def __call__(self, images):
        """The `(features, logits)` of images as `to_levels` takes them."""
        import tensorflow as tf

        def extract(batch):
            batch = to_levels(batch)
            if batch.shape[-1] == 1:
                batch = np.repeat(batch, 3, axis=-1)
            batch = tf.image.resize(batch, (299, 299))
            outputs = self.module(batch)
            return [
                np.reshape(outputs[key].numpy(), (len(batch), -1))
                for key in ("pool_3", "logits")
            ]

        return _in_batches(extract, images, self.batch_size)


class Tiles:
    """An extractor that takes the tiles of images for images.

    A few large images then make enough samples for a covariance, which tell
    of texture rather than of layout. Values are labelled `tiles32_` and so
    on: compare them only at equal sizes of tiles and of images.

    Args:
        extractor: What `get` takes.
        size: Int >= 1, the height and width of a tile. Pixels left over at
            the lower and right edges of an image are not used.

    Raises:
        ValueError: for an unknown extractor, or a size below 1; when called,
            for an image smaller than a tile.
    """

    def __init__(self, extractor, size):
        check_count("size", size)
        self.extractor = get(extractor)
        self.size = size
        label = getattr(self.extractor, "label", "custom_")
        self.label = f"tiles{size}_{label}"
        self.name = getattr(self.extractor, "name", "custom")

    def __call__(self, images):
        """The `(features, logits)` of images as the extractor takes them."""
        images, size = np.asarray(images), self.size
        count, height, width, channels = images.shape
        rows, columns = height // size, width // size
        if not rows * columns:
            raise ValueError(
                f"Images must have at least {size} x {size} pixels, those of "
                f"a tile. Received: images of {height} x {width} pixels"
            )
        images = images[:, : rows * size, : columns * size]
        images = images.reshape(count, rows, size, columns, size, channels)
        images = images.transpose(0, 1, 3, 2, 4, 5)
        return self.extractor(images.reshape(-1, size, size, channels))


def to_levels(images):
    """Rounds images to the 256 levels of a file of 8 bits, in [-1, 1].

    Args:
        images: Array `(n, height, width, channels)`, uint8, or floats in
            [-1, 1].

    Returns:
        A float32 array of the same shape.

    Raises:
        ValueError: for images of other shapes or values.
    """
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(
            "Images must have the shape (n, height, width, channels). "
            f"Received: shape {images.shape}"
        )
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        # Not `low < -1`: NaN has to fail, too.
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(
                "Images must be uint8, or floats in [-1, 1]. Received: "
                f"{images.dtype} from {low} to {high}"
            )
        images = np.clip(images.astype("float32"), -1.0, 1.0)
        images = np.rint((images + 1.0) * 127.5)
    return images.astype("float32") / np.float32(127.5) - np.float32(1.0)


def get(identifier):
    """Retrieves an extractor by an identifier.

    Args:
        identifier: `"inception"` (downloaded if it is not in Keras' cache),
            the path of a `.keras` file, the folder of a copy of the Inception
            module, a Keras model, or an extractor.

    Returns:
        A callable from images to `(features, logits)`.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(identifier, keras.Model):
        return KerasExtractor(identifier)
    if callable(identifier):
        return identifier
    if identifier == "inception":
        return InceptionExtractor()
    if isinstance(identifier, (str, os.PathLike)):
        if name_of(identifier) == "inception":
            return InceptionExtractor(os.fspath(identifier))
        return KerasExtractor(identifier)
    raise ValueError(
        'The extractor must be "inception", the path of a Keras classifier, '
        "the folder of a copy of TF-GAN's Inception module, a Keras model, or "
        f"a callable. Received: extractor={identifier!r}"
    )


def name_of(path):
    """The `name` of the extractor that `get(path)` would load."""
    if path == "inception" or os.path.exists(
        os.path.join(path, "saved_model.pb")
    ):
        return "inception"
    return os.path.basename(path)


def _load(path):
    if not os.path.isfile(path):
        raise ValueError(
            "There is no such extractor. Pass the path of a Keras classifier "
            "(a .keras file), a folder with a copy of TF-GAN's Inception "
            'module (with saved_model.pb in it), or "inception". '
            f"Received: {os.fspath(path)!r}"
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "The extractor is not a Keras model that can be loaded. Received: "
            f"{os.fspath(path)!r} ({reason})"
        ) from error


def _download(file_hash=None):
    """The folder in Keras' cache with the module, downloaded if need be."""
    archive = keras.utils.get_file(
        "tfgan_eval_inception_1.tar.gz",
        f"{INCEPTION}?tf-hub-format=compressed",
        file_hash=file_hash,
        cache_subdir="keras_san",
    )
    folder = archive.removesuffix(".tar.gz")
    if not os.path.exists(os.path.join(folder, "saved_model.pb")):
        try:
            with tarfile.open(archive) as tar:
                # The filter lets no file out of the folder.
                tar.extractall(f"{folder}.new", filter="data")
        except tarfile.TarError:
            os.remove(archive)  # Else it would never be downloaded anew.
            raise
        # An interrupted extraction leaves no folder that looks whole.
        os.replace(f"{folder}.new", folder)
    return folder


def _resize(images, height, width, channels):
    if images.shape[-1] == 1 and channels == 3:
        images = np.repeat(images, 3, axis=-1)
    if channels not in (None, images.shape[-1]):
        raise ValueError(
            "Images must have the channels that the extractor takes. "
            f"Received: images with {images.shape[-1]} for an extractor of "
            f"{channels}"
        )
    if None in (height, width) or images.shape[1:3] == (height, width):
        return images
    return ops.image.resize(images, (height, width), "bilinear")


def _in_batches(extract, images, batch_size):
    if len(images) == 0:
        raise ValueError("Pass at least one image. Received: no images")
    parts = [
        extract(images[i : i + batch_size])
        for i in range(0, len(images), batch_size)
    ]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts))
