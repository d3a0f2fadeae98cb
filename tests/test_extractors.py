import functools
import hashlib
import tarfile

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import layers

from keras_san.metrics import extractors

RNG = np.random.default_rng(0)


def classifier(shape=(8, 8, 3), **names):
    names = {"features": "features", "logits": "logits", **names}
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(name=names["features"]),
            layers.Dropout(0.5),
            layers.Dense(5, name=names["logits"]),
            layers.Softmax(),
        ]
    )


def expected(model, images):
    layer = {layer.name: layer for layer in model.layers}
    x = model.layers[0](images)
    features = layer["features"](x)
    return [
        np.asarray(keras.ops.convert_to_numpy(y))
        for y in (features, layer["logits"](features))
    ]


def noise(n, size=8, channels=3):
    return RNG.integers(0, 256, (n, size, size, channels), "uint8")


class TestLevels:
    def test_uint8(self):
        images = np.arange(256, dtype="uint8").reshape(1, 16, 16, 1)
        levels = extractors.to_levels(images)
        np.testing.assert_allclose(
            levels.ravel(), np.linspace(-1, 1, 256), atol=1e-6
        )
        # Floats of the same levels are not changed.
        np.testing.assert_array_equal(extractors.to_levels(levels), levels)

    def test_rounds(self):
        images = np.array([-1.0, -0.999, 0.5001, 1.0005]).reshape(1, 2, 2, 1)
        levels = (extractors.to_levels(images).ravel() + 1.0) * 127.5
        np.testing.assert_allclose(levels, [0, 0, 191, 255], atol=1e-4)

    def test_half_precision(self):
        images = np.linspace(-1, 1, 4096).reshape(1, 64, 64, 1)
        images = images.astype("float16")
        np.testing.assert_array_equal(
            extractors.to_levels(images),
            extractors.to_levels(images.astype("float64")),
        )

    @pytest.mark.parametrize("bad", [255.0, -1.1, np.nan, np.inf])
    def test_range(self, bad):
        images = np.zeros((1, 2, 2, 1))
        images[0, 1, 1] = bad
        with pytest.raises(ValueError, match="uint8, or floats.*Received"):
            extractors.to_levels(images)

    def test_shape(self):
        with pytest.raises(ValueError, match=r"shape \(3, 3, 1\)"):
            extractors.to_levels(np.zeros((3, 3, 1)))


class TestKeras:
    def test_outputs(self):
        model = classifier()
        extractor = extractors.KerasExtractor(model, batch_size=3)
        images = noise(8)
        found = extractor(images)
        for x, y in zip(found, expected(model, images / 127.5 - 1.0)):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        assert found[0].shape == (8, 4) and found[1].shape == (8, 5)

    def test_names(self):
        model = classifier(features="f", logits="l")
        extractors.KerasExtractor(model, features="f", logits="l")
        with pytest.raises(ValueError, match="no layer named 'features'.*'f'"):
            extractors.KerasExtractor(model)

    def test_resizes_and_repeats_grey(self):
        model = classifier()
        images = np.full((2, 4, 4, 1), 100, "uint8")
        found = extractors.KerasExtractor(model)(images)
        large = np.full((2, 8, 8, 3), 100 / 127.5 - 1.0)
        for x, y in zip(found, expected(model, large)):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)

    def test_colours_for_a_grey_extractor(self):
        extractor = extractors.KerasExtractor(classifier((8, 8, 1)))
        with pytest.raises(ValueError, match="images with 3 .*extractor of 1"):
            extractor(noise(2))

    def test_no_logits(self):
        model = classifier()
        softmax = model.layers[-1].name
        with pytest.raises(ValueError, match="softmax.*Received: logits="):
            extractors.KerasExtractor(model, logits=softmax)

    def test_maps_are_no_features(self):
        with pytest.raises(ValueError, match=r"shapes.*\(None, 6, 6, 4\)"):
            model = classifier()
            extractors.KerasExtractor(model, features=model.layers[0].name)

    def test_vectors_are_no_images(self):
        inputs = keras.Input((5,))
        features = keras.layers.Dense(3, name="features")(inputs)
        logits = keras.layers.Dense(2, name="logits")(features)
        with pytest.raises(ValueError, match=r"take images.*\(None, 5\)"):
            extractors.KerasExtractor(keras.Model(inputs, logits))

    def test_the_model_stays_as_it_is(self):
        model = classifier()
        extractors.KerasExtractor(model)
        assert len(model.trainable_weights) == len(model.weights) > 0

    def test_path(self, tmp_path):
        path = tmp_path / "judge.keras"
        model = classifier()
        model.save(path)
        images = noise(3)
        for x, y in zip(
            extractors.get(path)(images), extractors.get(model)(images)
        ):
            np.testing.assert_array_equal(x, y)
        extractor = extractors.get(str(path))
        assert (extractor.label, extractor.name) == ("judge_", "judge.keras")
        assert extractors.name_of(path) == "judge.keras"

    def test_bad_paths(self, tmp_path):
        with pytest.raises(ValueError, match="no such extractor.*nowhere"):
            extractors.get(tmp_path / "nowhere.keras")
        (tmp_path / "broken.keras").write_bytes(b"PK nonsense")
        with pytest.raises(ValueError, match="cannot|not a Keras.*broken"):
            extractors.get(tmp_path / "broken.keras")

    def test_no_images(self):
        with pytest.raises(ValueError, match="no images"):
            extractors.KerasExtractor(classifier())(noise(0))


class TestTiles:
    def test_what_is_seen(self):
        images = noise(2, 7)
        tiles = extractors.Tiles(classifier((3, 3, 3)), 3)
        assert (tiles.label, tiles.name) == ("tiles3_judge_", "model")
        expected_tiles = [
            image[y : y + 3, x : x + 3]
            for image in images
            for y in (0, 3)
            for x in (0, 3)
        ]
        for found, other in zip(
            tiles(images), tiles.extractor(np.stack(expected_tiles))
        ):
            assert len(found) == 8
            np.testing.assert_allclose(found, other, atol=1e-6)

    def test_of_a_callable(self):
        tiles = extractors.Tiles(lambda images: (images.shape, None), 4)
        assert tiles.label == "tiles4_custom_"
        assert tiles(noise(3, 8))[0] == (12, 4, 4, 3)

    def test_images_smaller_than_a_tile(self):
        with pytest.raises(ValueError, match="9 x 9 pixels.*8 x 8"):
            extractors.Tiles(lambda images: None, 9)(noise(1, 8))
        with pytest.raises(ValueError, match="size=0"):
            extractors.Tiles(lambda images: None, 0)


class TestGet:
    def test_callable(self):
        def mine(images):
            return images, images

        assert extractors.get(mine) is mine

    @pytest.mark.parametrize("bad", [None, 3, ["inception"]])
    def test_anything_else(self, bad):
        with pytest.raises(ValueError, match="Received: extractor="):
            extractors.get(bad)


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the module is TensorFlow's on all backends; run on tensorflow",
)
class TestInception:
    @pytest.fixture
    def folder(self, tmp_path):
        """A module that is called like TF-GAN's."""
        import tensorflow as tf

        class Module(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec((None, 299, 299, 3))])
            def __call__(self, images):
                corners = images[:, ::298, ::298, :]
                return {
                    "pool_3": tf.reduce_mean(corners, (1, 2), keepdims=True),
                    "logits": tf.reshape(corners, (-1, 12)),
                }

        path = tmp_path / "module"
        tf.saved_model.save(Module(), str(path))
        return path

    def test_local_copy(self, folder):
        extractor = extractors.get(folder)
        assert extractor.label == ""
        assert extractors.name_of(folder) == extractor.name == "inception"
        extractor.batch_size = 2
        images = noise(5)
        features, logits = extractor(images)
        # Bilinear, half-pixel centres: corners of the image stay corners.
        corners = images[:, ::7, ::7] / 127.5 - 1.0
        np.testing.assert_allclose(logits, corners.reshape(5, 12), atol=1e-5)
        np.testing.assert_allclose(
            features, corners.mean(axis=(1, 2)), atol=1e-5
        )
        grey = extractor(images[..., :1])[0]
        np.testing.assert_allclose(grey, features[:, :1].repeat(3, 1), atol=1)
        np.testing.assert_array_equal(grey[:, 0], grey[:, 1])

    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """The places that the archive is downloaded from and to."""
        url = (tmp_path / "inception").as_uri()
        monkeypatch.setattr(extractors, "INCEPTION", url)
        cache = tmp_path / "cache"
        cache.mkdir()
        get_file = functools.partial(keras.utils.get_file, cache_dir=cache)
        monkeypatch.setattr(keras.utils, "get_file", get_file)
        return tmp_path / "inception?tf-hub-format=compressed"

    def test_download(self, folder, served):
        with tarfile.open(served, "w:gz") as tar:
            tar.add(folder, arcname=".")
        images = noise(2)
        expected = extractors.get(folder)(images)
        for _ in range(2):  # The second time it is in the cache.
            found = extractors.get("inception")(images)
            np.testing.assert_array_equal(found[0], expected[0])
            served.unlink(missing_ok=True)
        with tarfile.open(served, "w:gz") as tar:
            tar.add(folder, arcname=".")
        digest = hashlib.sha256(served.read_bytes()).hexdigest()
        extractors.InceptionExtractor(file_hash=digest)
        with pytest.raises(ValueError, match="cannot be loaded.*hash"):
            extractors.InceptionExtractor(file_hash=digest[::-1])

    def test_no_network(self, served):
        with pytest.raises(ValueError, match="copy of.*No such file"):
            extractors.get("inception")

    def test_bad_archives(self, served, tmp_path, folder):
        served.write_bytes(b"<html>")
        with pytest.raises(ValueError, match="cannot be loaded.*ReadError"):
            extractors.get("inception")
        with tarfile.open(served, "w:gz") as tar:
            tar.add(folder / "saved_model.pb", arcname="../outside")
        with pytest.raises(ValueError, match="OutsideDestinationError"):
            extractors.get("inception")
        assert not list(tmp_path.glob("**/outside"))
        # What was no archive is downloaded anew.
        with tarfile.open(served, "w:gz") as tar:
            tar.add(folder, arcname=".")
        extractors.get("inception")

    def test_not_a_module(self, tmp_path):
        (tmp_path / "saved_model.pb").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="cannot be loaded"):
            extractors.get(tmp_path)
