"""GANs that make images from images, and their content losses."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, ignore_torch_copies, to_numpy
from keras import layers

from keras_san import (
    PairedGAN,
    SANConv2D,
    SANDense,
    callbacks,
    losses,
    penalties,
)

RNG = np.random.default_rng(0)
SMALL = RNG.uniform(-1, 1, (8, 6, 6, 3)).astype("float32")
LARGE = RNG.uniform(-1, 1, (8, 12, 12, 3)).astype("float32")


def extractor():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.Conv2D(5, 3, activation="tanh", name="second"),
            layers.Flatten(),
            layers.Dense(2, name="dense"),
        ]
    )


def make_gan(window=8, compile=True, **kwargs):
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(images)
    x = layers.Conv2D(3, 3, padding="same")(layers.UpSampling2D(2)(x))
    generator = keras.Model(images, x)
    critic = keras.Sequential(
        [
            keras.Input((window, window, 3)),
            SANConv2D(4, 4, strides=2, name="first"),
            layers.LeakyReLU(0.1),
            layers.Flatten() if window else layers.GlobalMaxPooling2D(),
            SANDense(1),
        ]
    )
    kwargs = {"content_losses": [losses.PixelLoss(0.5)], "seed": 0, **kwargs}
    gan = PairedGAN(generator, critic, **kwargs)
    if compile:
        gan.compile(run_eagerly=BACKEND == "tensorflow")
    return gan


def fit(gan, **kwargs):
    kwargs = {"batch_size": 4, "verbose": 0, "shuffle": False, **kwargs}
    return gan.fit(SMALL, LARGE, **kwargs).history


class TestContentLosses:
    @pytest.mark.parametrize("order", [1, 2])
    def test_pixel_loss(self, order):
        a, b = SMALL, SMALL[::-1]
        difference = np.abs((a - b) / 2.0).astype("float64") ** order
        loss = losses.PixelLoss(3.0, order)
        np.testing.assert_allclose(
            to_numpy(loss(a, b)), difference.mean(), rtol=1e-6
        )
        config = keras.saving.serialize_keras_object(loss)
        again = keras.saving.deserialize_keras_object(config)
        assert (again.weight, again.order) == (3.0, order)

    @ignore_torch_copies
    @pytest.mark.parametrize("activated", [False, True])
    def test_perceptual_loss(self, activated):
        """A loss by the model's own kernels, on images of another size."""
        model = extractor()
        loss = losses.PerceptualLoss(
            2.0, model, {"first": 0.25, "second": 3.0}, activated
        )
        kernels = [to_numpy(w) for w in model.weights[:4]]

        def correlate(x, kernel, bias):
            windows = np.lib.stride_tricks.sliding_window_view(
                x, kernel.shape[:2], axis=(1, 2)
            )
            return np.einsum("nyxcij,ijco->nyxo", windows, kernel) + bias

        def features(x):
            first = correlate(np.float64(x), *kernels[:2])
            active = np.maximum(first, 0.0)
            second = correlate(active, *kernels[2:])
            if activated:
                return active, np.tanh(second)
            return first, second

        expected = 0.0
        pairs = zip(features(LARGE), features(LARGE[::-1]))
        for factor, (a, b) in zip((0.25, 3.0), pairs):
            expected += factor * np.abs(a - b).mean()
        np.testing.assert_allclose(
            to_numpy(loss(LARGE, LARGE[::-1].copy())), expected, rtol=1e-4
        )
        # The model itself keeps its activations, and may still be trained.
        assert model.get_layer("first").activation is keras.activations.relu
        assert model.trainable and not loss.network.trainable_variables

    def test_a_file_of_a_model(self, tmp_path):
        model = extractor()
        model.save(tmp_path / "judge.keras")
        loss = losses.PerceptualLoss(1.0, tmp_path / "judge.keras", "second")
        config = keras.saving.serialize_keras_object(loss)
        again = keras.saving.deserialize_keras_object(config)
        expected = losses.PerceptualLoss(1.0, model, "second")
        for found in (loss, again):
            np.testing.assert_allclose(
                to_numpy(found(LARGE, -LARGE)),
                to_numpy(expected(LARGE, -LARGE)),
                rtol=1e-6,
            )

    def test_vgg(self, tmp_path):
        """The published preprocessing: BGR levels less their means."""
        keras.utils.set_random_seed(0)
        vgg = keras.applications.VGG19(include_top=False, weights=None)
        path = str(tmp_path / "vgg.weights.h5")
        vgg.save_weights(path)
        loss = losses.PerceptualLoss(1.0, path)
        images = SMALL[:1].repeat(3, axis=1).repeat(3, axis=2)
        means = np.array([103.939, 116.779, 123.68])
        levels = (127.5 * (images + 1.0))[..., ::-1] - means
        until = keras.Model(vgg.inputs[0], vgg.get_layer("block5_conv3").output)
        last = vgg.get_layer("block5_conv4")
        expected = last.convolution_op(
            until(levels.astype("float32")), last.kernel
        )
        (found,) = loss.features(images)
        expected = to_numpy(expected)
        assert expected.min() < 0.0  # Before the activation.
        np.testing.assert_allclose(
            to_numpy(found), expected, rtol=1e-3, atol=1e-4
        )

    def test_files_of_something_else(self, tmp_path, monkeypatch):
        def small(include_top, weights):
            return keras.Sequential(
                [
                    keras.Input((None, None, 3)),
                    layers.Conv2D(2 + include_top, 3),
                ]
            )

        # The network itself takes long to make.
        monkeypatch.setattr(keras.applications, "VGG19", small)
        (tmp_path / "weights.h5").write_bytes(b"nothing")
        (tmp_path / "model.keras").write_bytes(b"nothing")
        extractor().save_weights(tmp_path / "other.weights.h5")
        for path in tmp_path.iterdir():
            with pytest.raises(ValueError, match=f"neither.*{path.name}"):
                losses.PerceptualLoss(1.0, str(path))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"weight": 0}, "weight=0"),
            ({"extractor": "missing.h5"}, "no such file.*missing.h5"),
            ({"extractor": 3}, "extractor=3"),
            ({"layers": "third"}, r"\['third'\].*'second'"),
            ({"layers": "dense"}, "must not depend on the size.*dense"),
        ],
    )
    def test_bad_settings(self, settings, message):
        settings = {"extractor": extractor(), "layers": "second", **settings}
        with pytest.raises(ValueError, match=message):
            losses.PerceptualLoss(**settings)

    def test_bad_order(self):
        with pytest.raises(ValueError, match="order=3"):
            losses.PixelLoss(order=3)


class TestStep:
    def test_a_step_is_what_the_docstring_says(self):
        """One update, written out with the outputs of the networks."""
        loss = losses.PerceptualLoss(0.3, extractor(), "second")
        gan = make_gan(
            window=12,
            content_losses=[losses.PixelLoss(0.5), loss],
            adversarial_weight=0.2,
        )
        # Rates of zero: what is logged is of the first weights.
        for optimizer in (gan.generator_optimizer, gan.critic_optimizer):
            optimizer.learning_rate = 0.0
        history = fit(gan, batch_size=8)
        fake = gan.generate(SMALL)
        real_logit, fake_logit = (
            to_numpy(gan.critic(x)) for x in (LARGE, fake)
        )
        expected = {
            "real_logit": real_logit.mean(),
            "fake_logit": fake_logit.mean(),
            "critic_loss": np.maximum(0, 1 - real_logit).mean()
            + np.maximum(0, 1 + fake_logit).mean(),
            "generator_loss": -fake_logit.mean(),
            "pixel_loss": np.abs(fake - LARGE).mean() / 2.0,
            "perceptual_loss": to_numpy(loss(LARGE, fake)),
        }
        expected["loss"] = (
            expected["critic_loss"]
            + 0.2 * expected["generator_loss"]
            + 0.5 * expected["pixel_loss"]
            + 0.3 * expected["perceptual_loss"]
        )
        assert set(history) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                history[name], [value], rtol=1e-4, atol=1e-6, err_msg=name
            )

    def test_both_networks_learn(self):
        gan = make_gan(ema=0.9)
        for optimizer in (gan.generator_optimizer, gan.critic_optimizer):
            optimizer.learning_rate = 1e-2
        before = [w.copy() for w in gan.get_weights()]
        history = fit(gan, epochs=5, batch_size=8)
        assert history["pixel_loss"][-1] < history["pixel_loss"][0]
        for network in (gan.generator, gan.critic, gan.averaged_generator):
            assert any(
                np.any(to_numpy(w) != old)
                for w in network.weights
                for old in before
                if old.shape == w.shape
            )

    def test_windows(self):
        """Windows are anywhere, of one size, and the same for both images."""
        gan = make_gan(window=8)
        seen = []
        mark = np.arange(144, dtype="float32").reshape(1, 12, 12, 1)
        images = keras.ops.convert_to_tensor(np.repeat(mark, 3, axis=3))
        for _ in range(60):
            view = gan._make_window()
            first, second = to_numpy(view(images)), to_numpy(view(images))
            np.testing.assert_array_equal(first, second)
            assert first.shape == (1, 8, 8, 3)
            corner = int(first[0, 0, 0, 0])
            np.testing.assert_array_equal(
                first[0, :, :, 0],
                corner + 12 * np.arange(8)[:, None] + np.arange(8),
            )
            seen.append(divmod(corner, 12))
        assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))

    def test_images_of_any_size_for_a_critic_of_any_size(self):
        gan = make_gan(window=None)
        history = fit(gan, batch_size=8)
        assert np.isfinite(history["loss"]).all()

    def test_critic_steps_and_penalty(self):
        gan = make_gan(critic_steps=2, penalty=penalties.GradientPenalty())
        history = fit(gan, batch_size=8)
        assert np.isfinite(history["loss"]).all()
        assert int(gan.critic_optimizer.iterations.numpy()) == 2
        assert int(gan.generator_optimizer.iterations.numpy()) == 1

    def test_compiled_like_eager(self):
        histories = []
        for eager in (True, False):
            gan = make_gan(compile=False)
            gan.compile(run_eagerly=eager, jit_compile=False)
            histories.append(fit(gan, epochs=2))
        for name in histories[0]:
            np.testing.assert_allclose(
                histories[0][name], histories[1][name], rtol=1e-3, atol=1e-5
            )


def test_files(tmp_path):
    model = extractor()
    model.save(tmp_path / "extractor.keras")
    loss = losses.PerceptualLoss(
        1.0, str(tmp_path / "extractor.keras"), "second"
    )
    gan = make_gan(content_losses=[losses.PixelLoss(), loss], ema=0.5)
    fit(gan, batch_size=8)
    gan.save(tmp_path / "gan.keras")
    again = keras.saving.load_model(tmp_path / "gan.keras")
    np.testing.assert_array_equal(again.generate(SMALL), gan.generate(SMALL))
    assert [x.name for x in again.content_losses] == [
        "pixel_loss",
        "perceptual_loss",
    ]
    # The second epoch of both is the same.
    np.testing.assert_allclose(
        fit(again, batch_size=8)["loss"],
        fit(gan, batch_size=8)["loss"],
        rtol=1e-5,
    )
    # What the extractor holds is in its own file alone.
    gan.save_weights(tmp_path / "gan.weights.h5")
    model.get_layer("first").kernel.assign(np.zeros((3, 3, 3, 4)))
    before = to_numpy(loss(LARGE, -LARGE))
    gan.load_weights(tmp_path / "gan.weights.h5")
    np.testing.assert_array_equal(to_numpy(loss(LARGE, -LARGE)), before)
    count = sum(
        np.prod(w.shape)
        for network in (gan.generator, gan.averaged_generator, gan.critic)
        for w in network.weights
    )
    assert gan.count_params() == count


def test_a_model_that_is_no_file_is_not_saved(tmp_path):
    loss = losses.PerceptualLoss(1.0, extractor(), "second")
    gan = make_gan(content_losses=[loss])
    gan.save(tmp_path / "gan.keras")
    with pytest.raises(ValueError, match="not saved with a GAN"):
        keras.saving.load_model(tmp_path / "gan.keras")
    again = make_gan(content_losses=[loss])
    again.load_weights(tmp_path / "gan.keras")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial_weight": 0}, "adversarial_weight=0"),
        (
            {"content_losses": [losses.PixelLoss(), losses.PixelLoss()]},
            r"different names.*\['pixel_loss', 'pixel_loss'\]",
        ),
        ({"critic_steps": 0}, "critic_steps=0"),
        ({"loss": "hing"}, "loss='hing'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_gan(compile=False, **settings)


def test_bad_networks():
    gan = make_gan(compile=False)
    grey = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1)]
    )
    with pytest.raises(ValueError, match=r"3\).*\(None, 8, 8, 1\)"):
        PairedGAN(gan.generator, grey)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.data")
def test_images_of_an_unknown_size():
    import tensorflow as tf

    spec = tf.TensorSpec((None, None, None, 3))
    gan = make_gan()
    step = tf.function(
        lambda x, y: gan.step((x, y)),
        input_signature=[spec, spec],
        autograph=False,
    )
    with pytest.raises(ValueError, match="one known size.*ensure_shape"):
        step.get_concrete_function()


@pytest.mark.parametrize(
    "make",
    [
        callbacks.SampleGrid,
        callbacks.TensorBoard,
        lambda path: callbacks.Evaluation(
            np.zeros((20, 8, 8, 3), "uint8"),
            lambda images: (np.zeros((len(images), 2)),) * 2,
            num_images=10,
        ),
    ],
)
def test_callbacks_of_other_gans_say_so_at_once(tmp_path, make):
    with pytest.raises(ValueError, match="callbacks.ImageQuality"):
        fit(make_gan(), callbacks=[make(tmp_path)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((SMALL,), "no targets"),
        ((SMALL, LARGE[:, :10]), r"\(12, 12, 3\).*\(.*10, 12, 3\)"),
        (
            (SMALL[:, :3, :3], LARGE[:, :6, :6]),
            r"windows of 8 x 8.*\(.*6, 6, 3\)",
        ),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        make_gan().fit(*data, batch_size=4, verbose=0)


# GANs whose critic sees what images are made from.
CLASSES = 4
MAPS = np.eye(CLASSES, dtype="uint8")[RNG.integers(CLASSES, size=(4, 16, 24))]
IMAGES = RNG.uniform(-1, 1, (4, 16, 24, 3)).astype("float32")


def plain_generator():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16, 24, CLASSES)),
            layers.Conv2D(3, 3, padding="same", activation="tanh"),
        ]
    )


def plain_critic(extra=0, batch_norm=False, channels=CLASSES, scales=2):
    """A small critic of the most general kind that `PairedGAN` takes."""
    keras.utils.set_random_seed(1)
    images, maps = keras.Input((16, 24, 3)), keras.Input((16, 24, channels))
    x = layers.Concatenate()([images, maps])
    outputs = []
    for index in range(scales):
        y = layers.Conv2D(3 + index, 3, strides=2 + index)(x)
        y = layers.BatchNormalization()(y) if batch_norm else y
        features = [y, *(layers.ReLU()(y) for _ in range(extra))]
        outputs.append([*features, layers.Conv2D(1, 3)(y)])
    return keras.Model([images, maps], outputs)


def make_conditional(joint=True, critic=None, compile=True, **kwargs):
    gan = PairedGAN(
        plain_generator(),
        critic or plain_critic(),
        feature_matching=kwargs.pop("feature_matching", 10.0),
        joint=joint,
        seed=0,
        **kwargs,
    )
    if compile:
        gan.compile(run_eagerly=BACKEND == "tensorflow")
    return gan


def fit_conditional(gan, **kwargs):
    kwargs = {"batch_size": 4, "verbose": 0, "shuffle": False, **kwargs}
    return gan.fit(MAPS, IMAGES, **kwargs).history


class TestConditional:
    @pytest.mark.parametrize(("joint", "scales"), [(False, 1), (True, 2)])
    def test_a_step_is_what_the_docstring_says(self, joint, scales):
        """One update, written out with the outputs of the networks."""
        gan = make_conditional(
            joint,
            plain_critic(extra=1, scales=scales),
            content_losses=[losses.PixelLoss(0.5)],
            adversarial_weight=0.2,
            penalty=penalties.GradientPenalty(),
        )
        for optimizer in (gan.generator_optimizer, gan.critic_optimizer):
            optimizer.learning_rate = 0.0
        history = fit_conditional(gan)
        fake = gan.generate(MAPS)
        real_out, fake_out = (
            keras.tree.flatten(gan.critic([images, MAPS]))
            for images in (IMAGES, fake)
        )
        real_out, fake_out = (
            [
                [to_numpy(x) for x in out[i : i + 3]]
                for i in range(0, len(out), 3)
            ]
            for out in (real_out, fake_out)
        )
        assert len(real_out) == scales
        expected = {
            "real_logit": np.mean([s[-1].mean() for s in real_out]),
            "fake_logit": np.mean([s[-1].mean() for s in fake_out]),
            "critic_loss": np.mean(
                [
                    np.maximum(0, 1 - a[-1]).mean()
                    + np.maximum(0, 1 + b[-1]).mean()
                    for a, b in zip(real_out, fake_out)
                ]
            ),
            "feature_matching_loss": np.mean(
                [
                    sum(np.abs(x - y).mean() for x, y in zip(a[:-1], b[:-1]))
                    for a, b in zip(real_out, fake_out)
                ]
            ),
            "pixel_loss": np.abs(fake - IMAGES).mean() / 2.0,
        }
        expected["generator_loss"] = -expected["fake_logit"]
        expected["loss"] = (
            expected["critic_loss"]
            + 0.2 * expected["generator_loss"]
            + 10.0 * expected["feature_matching_loss"]
            + 0.5 * expected["pixel_loss"]
        )
        assert set(history) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                history[name], [value], rtol=1e-3, atol=1e-5, err_msg=name
            )

    def test_one_batch_or_two(self):
        """A batch of both makes a difference to batch normalization only."""
        same = [
            fit_conditional(make_conditional(joint), epochs=2)["loss"]
            for joint in (False, True)
        ]
        np.testing.assert_allclose(*same, rtol=1e-3)
        critic = plain_critic(batch_norm=True)
        assert np.isfinite(
            fit_conditional(make_conditional(False, critic))["loss"]
        )
        with pytest.raises(ValueError, match="Received: joint=True"):
            make_conditional(True, critic)

    def test_feature_matching(self):
        a, b = (RNG.normal(size=(2, 3)).astype("float32") for _ in range(2))
        found = losses.feature_matching([[a, b]] * 2, [[b, b]] * 2)
        np.testing.assert_allclose(
            to_numpy(found), np.abs(a - b).mean(), rtol=1e-5
        )

    def test_files(self, tmp_path):
        gan = make_conditional()
        fit_conditional(gan)
        gan.save(tmp_path / "gan.keras")
        again = keras.saving.load_model(tmp_path / "gan.keras")
        assert again.feature_matching == 10.0 and again.joint is True
        np.testing.assert_array_equal(again.generate(MAPS), gan.generate(MAPS))
        np.testing.assert_allclose(
            fit_conditional(again)["loss"],
            fit_conditional(gan)["loss"],
            rtol=1e-4,
        )


def test_bad_data_of_a_conditional_gan():
    gan = make_conditional()
    classes = MAPS.argmax(-1)
    with pytest.raises(ValueError, match=r"24, 4\).*inputs of shape \(4, 16, "):
        gan.fit(classes, IMAGES, batch_size=4, verbose=0)
    with pytest.raises(ValueError, match=r"24, 4\).*images of shape \(4, 16, "):
        gan.generate(classes)
    # A generator of images of any size has a critic of one size.
    generator = keras.Sequential(
        [
            keras.Input((None, None, CLASSES)),
            layers.Conv2D(3, 3, padding="same"),
        ]
    )
    gan = PairedGAN(generator, plain_critic())
    gan.compile()
    tall = [x.repeat(2, axis=1) for x in (MAPS, IMAGES)]
    with pytest.raises(ValueError, match=r"16, 24, 3\).*targets of.*\(4, 32"):
        gan.fit(*tall, batch_size=4, verbose=0)


def test_bad_conditional_networks():
    with pytest.raises(ValueError, match="what the generator makes them from"):
        PairedGAN(plain_generator(), plain_critic(channels=3))
    alone = keras.Sequential(
        [keras.Input((16, 24, 3)), layers.Flatten(), layers.Dense(1)]
    )
    with pytest.raises(ValueError, match="features.*feature_matching=2.0"):
        PairedGAN(plain_generator(), alone, feature_matching=2.0)
    with pytest.raises(ValueError, match="feature_matching=-1"):
        make_conditional(feature_matching=-1, compile=False)
