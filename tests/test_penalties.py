import keras
import numpy as np
import pytest
from helpers import BACKEND, to_numpy
from keras import layers, ops

from keras_san import GAN, losses
from keras_san.penalties import R1, R2, GradientPenalty

REAL = np.random.default_rng(0).normal(size=(4, 6))
FAKE = np.random.default_rng(1).uniform(-0.9, 0.9, size=6)
WEIGHTS = [
    np.random.default_rng(2).normal(size=shape) for shape in ((6, 5), (5, 1))
]
RATE = 0.05


def make_gan(
    penalty, shape=(2, 3, 1), loss="hinge", num_classes=None, **kwargs
):
    """The critic is a network of one hidden layer, the generator a constant.

    Args:
        penalty: As in `GAN`.
        shape: The shape of images, of six values.
        loss: As in `GAN`.
        num_classes: As in `GAN`. The networks do not look at labels.
        **kwargs: Those of `compile`.
    """
    labels = [] if num_classes is None else [keras.Input((), dtype="int32")]
    latents = keras.Input((3,))
    made = layers.Dense(6, activation="tanh", kernel_initializer="zeros")
    generator = keras.Model(
        [latents, *labels] if labels else latents,
        layers.Reshape(shape)(made(latents)),
    )
    made.bias.assign(np.arctanh(FAKE))
    images = keras.Input(shape)
    hidden = layers.Dense(5, activation="tanh", use_bias=False)
    last = layers.Dense(1, use_bias=False)
    critic = keras.Model(
        [images, *labels] if labels else images,
        last(hidden(layers.Reshape((6,))(images))),
    )
    critic.set_weights(WEIGHTS)
    gan = GAN(
        generator,
        critic,
        latent_dim=3,
        loss=loss,
        penalty=penalty,
        num_classes=num_classes,
        joint=kwargs.pop("joint", False),
    )
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(RATE), **kwargs)
    return gan


def fit(gan, epochs=1):
    images = REAL.reshape(4, *gan.generator.output_shape[1:])
    labels = [] if gan.num_classes is None else [np.zeros(4, "int32")]
    shared = {"batch_size": 4, "verbose": 0, "shuffle": False}
    gan.fit(images.astype("float32"), *labels, epochs=epochs, **shared)
    return [to_numpy(weight) for weight in gan.critic.weights]


def by_hand(weights, penalize, loss="hinge"):
    """The weights after an update, its gradients by central differences."""

    def logits(weights, x):
        return np.tanh(x @ weights[0]) @ weights[1]

    def gradients(weights, x):
        slope = 1.0 - np.tanh(x @ weights[0]) ** 2
        return (slope * weights[1][:, 0]) @ weights[0].T

    def value(weights):
        fake = np.repeat(FAKE[None], 4, axis=0)
        a, b = logits(weights, REAL), logits(weights, fake)
        if loss == "hinge":
            total = np.maximum(0, 1 - a).mean() + np.maximum(0, 1 + b).mean()
        else:
            total = np.log1p(np.exp(b - a)).mean()
        squares = [
            np.mean(np.sum(gradients(weights, x) ** 2, axis=1))
            for x in (REAL, fake)
        ]
        return total + penalize(*squares)

    after = []
    for index, weight in enumerate(weights):
        gradient = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [w.copy() for w in weights]
                moved[index][place] += step
                sides.append(value(moved))
            gradient[place] = (sides[0] - sides[1]) / 2e-6
        after.append(weight - RATE * gradient)
    return after


@pytest.mark.parametrize(
    ("penalty", "penalize", "settings"),
    [
        (R1(3.0), lambda real, fake: 1.5 * real, {}),
        (R2(3.0), lambda real, fake: 1.5 * fake, {"shape": (6,)}),
        (
            [R1(3.0), R2(2.0)],
            lambda real, fake: 1.5 * real + fake,
            {"shape": (1, 2, 3, 1), "loss": "relativistic"},
        ),
        (
            [R1(3.0), R2(2.0)],
            lambda real, fake: 1.5 * real + fake,
            {"num_classes": 1, "joint": True},
        ),
    ],
)
@pytest.mark.parametrize("how", ["eager", "graph", "jit"])
def test_an_update(penalty, penalize, settings, how):
    if how != "graph" and BACKEND != "tensorflow":
        pytest.skip("one way to run a step is enough; run on tensorflow")
    ways = {"eager": {"run_eagerly": True}, "jit": {"jit_compile": True}}
    found = fit(make_gan(penalty, **settings, **ways.get(how, {})))
    loss = settings.get("loss", "hinge")
    for a, b in zip(found, by_hand(WEIGHTS, penalize, loss)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}])
def test_interval(how):
    """Three times as large, in one of three updates."""
    if how and BACKEND != "tensorflow":
        pytest.skip("JAX compiles anyway; run on tensorflow")
    gan = make_gan([R1(2.0, interval=3), R2(1.0)], **how)
    found = fit(gan, epochs=4)
    weights = WEIGHTS
    for step in range(4):
        factor = 3.0 * (step % 3 == 0)
        weights = by_hand(
            weights, lambda real, fake: factor * real + 0.5 * fake
        )
    for a, b in zip(found, weights):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_penalty_of_any_rank():
    rng = np.random.default_rng(0)
    penalty = GradientPenalty(2.0)
    for shape in ((4, 9), (4, 3, 3, 1), (4, 3, 1, 3, 1)):
        real, fake = rng.uniform(size=(2, *shape))
        share = rng.uniform(size=(4, *(1 for _ in shape[1:])))
        tensors = (
            ops.convert_to_tensor(x, "float32") for x in (real, fake, share)
        )
        found = penalty(2.0 * penalty.points(*tensors))
        points = (real + share * (fake - real)).reshape(4, -1)
        norms = 2 * np.linalg.norm(points, axis=1)
        expected = 2.0 * np.mean((norms - 1) ** 2)
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-5)


def test_files(tmp_path):
    gan = make_gan([R1(0.5, interval=16), R2(0.25), GradientPenalty()])
    gan.save(tmp_path / "gan.keras")
    loaded = keras.saving.load_model(tmp_path / "gan.keras")
    found = [(type(x), x.weight, x.interval) for x in loaded.penalties]
    expected = [(R1, 0.5, 16), (R2, 0.25, 1), (GradientPenalty, 10.0, 1)]
    assert found == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R1(0.0), "weight=0.0"),
        (lambda: R2(-1.0), "weight=-1.0"),
        (lambda: GradientPenalty("10"), "weight='10'"),
        (lambda: R1(1.0, interval=0), "interval=0"),
        (lambda: make_gan(losses.Hinge()), "keras_san.penalties.*Hinge"),
        (lambda: make_gan([R1(1.0), 3]), "penalty=.*3"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}|{message}"):
        make()
