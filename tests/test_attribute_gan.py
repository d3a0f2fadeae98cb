"""The GAN that changes attributes of images."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, ignore_torch_copies, to_numpy
from keras import layers

from keras_san import AttributeGAN, SANConv2D, penalties

pytestmark = ignore_torch_copies

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (8, 8, 8, 3)).astype("float32")
ATTRIBUTES = RNG.integers(2, size=(8, 4)).astype("float32")


def make_generator(number=4, size=8):
    keras.utils.set_random_seed(0)
    images, attributes = keras.Input((size, size, 3)), keras.Input((number,))
    x = layers.Dense(4)(attributes)[:, None, None, :]
    x = layers.Conv2D(4, 3, padding="same")(images) + x
    x = layers.Conv2D(3, 3, padding="same", activation="tanh")(x)
    return keras.Model([images, attributes], x)


def make_critic(number=4):
    keras.utils.set_random_seed(1)
    images = keras.Input((8, 8, 3))
    x = SANConv2D(6, 4, strides=2, name="first")(images)
    x = layers.LeakyReLU(0.01)(x)
    logits = SANConv2D(1, 3)(x)
    told = layers.Flatten()(layers.Conv2D(number, 4)(x))
    return keras.Model(images, [logits, told])


def make_gan(compile=True, **kwargs):
    gan = AttributeGAN(make_generator(), make_critic(), **{"seed": 0, **kwargs})
    if compile:
        gan.compile(run_eagerly=BACKEND == "tensorflow")
    return gan


def fit(gan, **kwargs):
    kwargs = {"batch_size": 4, "verbose": 0, "shuffle": False, **kwargs}
    return gan.fit(IMAGES, ATTRIBUTES, **kwargs).history


def cross_entropy(attributes, logits):
    p = 1.0 / (1.0 + np.exp(-logits))
    values = attributes * np.log(p) + (1.0 - attributes) * np.log(1.0 - p)
    return -values.sum(axis=1).mean()


class TestStep:
    def test_a_step_is_what_the_docstring_says(self, monkeypatch):
        """One update, written out with the outputs of the networks."""
        gan = make_gan(class_weight=0.7, cycle_weight=5.0, identity_weight=2.0)
        for optimizer in (gan.generator_optimizer, gan.critic_optimizer):
            optimizer.learning_rate = 0.0
        # Each image gets the attributes of the one behind it.
        monkeypatch.setattr(
            keras.random, "shuffle", lambda x, seed: keras.ops.roll(x, -1, 0)
        )
        targets = np.roll(ATTRIBUTES, -1, axis=0)
        history = fit(gan, batch_size=8)
        fake = gan.generate(IMAGES, targets)
        back = gan.generate(fake, ATTRIBUTES)
        real_logit, told = map(to_numpy, gan.critic(IMAGES))
        fake_logit, fake_told = map(to_numpy, gan.critic(fake))
        expected = {
            "real_logit": real_logit.mean(),
            "fake_logit": fake_logit.mean(),
            "critic_loss": np.maximum(0, 1 - real_logit).mean()
            + np.maximum(0, 1 + fake_logit).mean(),
            "generator_loss": -fake_logit.mean(),
            "class_loss": cross_entropy(ATTRIBUTES, told),
            "fake_class_loss": cross_entropy(targets, fake_told),
            "cycle_loss": np.abs(back - IMAGES).mean(),
            "identity_loss": np.abs(
                gan.generate(IMAGES, ATTRIBUTES) - IMAGES
            ).mean(),
        }
        expected["loss"] = (
            expected["critic_loss"]
            + expected["generator_loss"]
            + 0.7 * (expected["class_loss"] + expected["fake_class_loss"])
            + 5.0 * expected["cycle_loss"]
            + 2.0 * expected["identity_loss"]
        )
        assert set(history) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                history[name], [value], rtol=1e-3, atol=1e-5, err_msg=name
            )

    def test_targets_are_attributes_of_the_batch(self):
        gan = make_gan()
        condition = keras.ops.convert_to_tensor(ATTRIBUTES)
        (_, targets), again = gan._generator_inputs(IMAGES, condition)
        np.testing.assert_array_equal(to_numpy(targets), to_numpy(again))

        def rows(x):
            return sorted(map(tuple, to_numpy(x).tolist()))

        assert rows(targets) == rows(ATTRIBUTES)
        assert np.any(to_numpy(targets) != ATTRIBUTES)
        (_, others), _ = gan._generator_inputs(IMAGES, condition)
        assert np.any(to_numpy(targets) != to_numpy(others))

    def test_it_learns(self):
        gan = make_gan(compile=False, ema=0.9)
        # A graph, as it is trained: 40 steps are worth its making.
        gan.compile(
            keras.optimizers.Adam(1e-2),
            keras.optimizers.Adam(1e-2),
            jit_compile=False,
        )
        before = [to_numpy(w) for w in gan.trainable_variables]
        history = fit(gan, epochs=20)
        for name in ("class_loss", "cycle_loss"):
            assert history[name][-1] < 0.7 * history[name][0], name
        for old, new in zip(before, gan.trainable_variables):
            assert np.any(to_numpy(new) != old), new.path

    def test_the_original(self):
        """Wasserstein, several updates of the critic, a gradient penalty."""
        gan = make_gan(
            loss="wasserstein",
            critic_steps=2,
            penalty=penalties.GradientPenalty(),
        )
        history = fit(gan, batch_size=8)
        assert np.isfinite(history["loss"]).all()
        assert int(gan.critic_optimizer.iterations.numpy()) == 2

    def test_files(self, tmp_path):
        gan = make_gan(
            class_weight=0.5, cycle_weight=3.0, identity_weight=1.5, ema=0.5
        )
        fit(gan, batch_size=8)
        gan.save(tmp_path / "gan.keras")
        again = keras.saving.load_model(tmp_path / "gan.keras")
        assert (again.class_weight, again.cycle_weight) == (0.5, 3.0)
        assert again.identity_weight == 1.5
        np.testing.assert_array_equal(
            again.generate(IMAGES, ATTRIBUTES), gan.generate(IMAGES, ATTRIBUTES)
        )
        np.testing.assert_allclose(
            fit(again, batch_size=8)["loss"],
            fit(gan, batch_size=8)["loss"],
            rtol=1e-4,
        )

    @pytest.mark.skipif(
        BACKEND == "jax",
        reason="a compiled step cannot raise; run on tensorflow",
    )
    def test_attributes_of_another_range(self):
        """Their cross entropy would fall without limit."""
        gan = make_gan()
        for wrong in (2 * ATTRIBUTES - 1, 2 * ATTRIBUTES):
            with pytest.raises(ValueError, match="0 where not.*values from"):
                gan.fit(IMAGES, wrong, batch_size=4, verbose=0)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ((IMAGES,), "no attributes"),
            ((IMAGES, ATTRIBUTES[:, :3]), r"takes \(None, 4\).*attributes of"),
            (
                (IMAGES[:, :6], ATTRIBUTES),
                r"takes \(None, 8, 8, 3\).*images of",
            ),
            ((IMAGES, ATTRIBUTES[:, 0]), r"takes \(None, 4\).*attributes of"),
        ],
    )
    def test_bad_data(self, data, message):
        with pytest.raises(ValueError, match=message):
            make_gan().fit(*data, batch_size=4, verbose=0)


def test_generate():
    gan = make_gan(compile=False)
    if BACKEND != "torch":
        made = gan.generate(IMAGES, ATTRIBUTES, batch_size=3)
        expected = to_numpy(gan.generator([IMAGES, ATTRIBUTES]))
        np.testing.assert_allclose(made, expected, atol=1e-5)
    with pytest.raises(ValueError, match="8 images and 7 rows"):
        gan.generate(IMAGES, ATTRIBUTES[:7])
    with pytest.raises(ValueError, match=r"None, 4\).*attributes of.*\(8, 3"):
        gan.generate(IMAGES, ATTRIBUTES[:, :3])
    with pytest.raises(ValueError, match=r"8, 8, 3\).*images of.*\(8, 6, 8"):
        gan.generate(IMAGES[:, :6], ATTRIBUTES)
    with pytest.raises(ValueError, match="0 where not.*values from"):
        gan.generate(IMAGES, 2.0 * ATTRIBUTES - 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: (make_generator(5), make_critic()),
            r"\(None, 5\).*\(None, 4\)",
        ),
        (lambda: (make_generator(size=16), make_critic()), "16, 16.*8, 8"),
        (lambda: (make_generator(), make_generator()), "1 outputs"),
        (lambda: (make_critic(), make_critic()), "1 inputs"),
    ],
)
def test_bad_networks(make, message):
    with pytest.raises(ValueError, match=message):
        AttributeGAN(*make())


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_weight", 0), ("cycle_weight", 0), ("identity_weight", -1)],
)
def test_bad_settings(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_gan(**{name: value})
