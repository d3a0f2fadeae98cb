import keras
import numpy as np
import pytest
from helpers import BACKEND, images_of, to_numpy, value_and_gradient
from keras import layers, ops
from test_gan import fit, make_gan, some_images

from keras_san import GAN, PairedGAN, augmentation

NAMES = ("color", "translation", "cutout")


def by_hand(image, draws, names, probability):
    """One image, with loops, in the order of the authors' code."""
    a = iter(draws)
    numbers = [next(a) for _ in range(7)]
    gates = [next(a) < probability for _ in range(5)]
    image = image.astype("float64")
    height, width, _ = image.shape
    if "color" in names:
        if gates[0]:
            image = image + numbers[0] - 0.5
        if gates[1]:
            grey = image.mean(axis=2, keepdims=True)
            image = (image - grey) * 2 * numbers[1] + grey
        if gates[2]:
            image = (image - image.mean()) * (numbers[2] + 0.5) + image.mean()
    if "translation" in names and gates[3]:
        most = [int(n / 8 + 0.5) for n in (height, width)]
        dy, dx = (int(u * (2 * m + 1)) - m for u, m in zip(numbers[3:5], most))
        moved = np.zeros_like(image)
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    moved[y, x] = image[y + dy, x + dx]
        image = moved
    if "cutout" in names and gates[4]:
        sizes = [int(n / 2 + 0.5) for n in (height, width)]
        centre = [
            int(u * (n + 1 - s % 2))
            for u, n, s in zip(numbers[5:7], (height, width), sizes)
        ]
        image = image.copy()
        for y in range(height):
            for x in range(width):
                if all(
                    c - s // 2 <= place < c - s // 2 + s
                    for place, c, s in zip((y, x), centre, sizes)
                ):
                    image[y, x] = 0.0
    return image


@pytest.mark.parametrize(
    ("names", "probability"),
    [*(((name,), 1.0) for name in NAMES), (NAMES, 1.0), (NAMES, 0.5)],
)
@pytest.mark.parametrize("shape", [(16, 24, 3), (9, 8, 1)])
def test_by_hand(names, probability, shape):
    images = images_of(12, *shape)
    draws = np.random.default_rng(0).uniform(size=(12, augmentation.NUM_DRAWS))
    # The last numbers that there are, too.
    draws[0] = 1.0 - 1e-7
    draws[0, 7:] = 0.0
    draws = draws.astype("float32")
    found = augmentation.get(names)(
        ops.convert_to_tensor(images), ops.convert_to_tensor(draws), probability
    )
    for image, draw, made in zip(images, draws, to_numpy(found)):
        expected = by_hand(image, draw, names, probability)
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through():
    images = images_of(2, 8, 8, 3)
    draws = np.full((2, augmentation.NUM_DRAWS), 0.3, "float32")
    augment = augmentation.Augmentation()
    weights = ops.convert_to_tensor(images_of(2, 8, 8, 3, seed=1))

    def score(x):
        return ops.sum(weights * augment(x, ops.convert_to_tensor(draws), 1.0))

    value, gradient = value_and_gradient(score, images)
    # All operations are affine: what is not constant is the gradient's.
    constant, _ = value_and_gradient(score, np.zeros_like(images))
    np.testing.assert_allclose(
        value - constant, np.sum(gradient * images), rtol=1e-4
    )
    assert np.count_nonzero(gradient)


@pytest.mark.skipif(
    BACKEND == "jax", reason="it would record tracers; run on tensorflow"
)
def test_the_critic_is_shown_both_augmented(tmp_path):
    shown = []

    class Record(layers.Layer):
        def call(self, inputs):
            shown.append(to_numpy(inputs))
            return inputs

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    keras.utils.set_random_seed(0)
    generator = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(64, kernel_initializer="zeros"),
            layers.Reshape((8, 8, 1)),
        ]
    )
    generator.layers[0].bias.assign(np.ones(64))
    critic = keras.Sequential(
        [keras.Input((8, 8, 1)), Record(), layers.Flatten(), layers.Dense(1)]
    )
    gan = GAN(generator, critic, 5, augmentation="cutout", seed=0)
    gan.compile(run_eagerly=BACKEND == "tensorflow")
    shown.clear()
    fit(gan, np.ones((8, 8, 8, 1), "float32"))
    real, fake, again = shown
    for images in shown:
        # Part of each image is cut out, not of all the same.
        cut = np.mean(images == 0.0, axis=(1, 2, 3))
        assert np.all(cut > 0.0) and np.all(cut <= 0.25)
    assert np.any(real != fake) and np.any(fake != again)
    # Held-out images are shown as they are.
    shown.clear()
    gan.evaluate(np.ones((8, 8, 8, 1), "float32"), verbose=0)
    assert np.all(shown[0] == 1.0)
    gan.save(tmp_path / "gan.keras")
    config = gan.get_config()["augmentation"]
    assert augmentation.get(config).policy == ["cutout"]


def test_adaptive_strength(tmp_path):
    """The rule of its paper, by hand; it is saved, logged and resumed."""
    adaptive = augmentation.AdaptiveAugmentation(target=0.5, images=100)
    gan = make_gan(None, augmentation=adaptive)
    bias = gan.critic.trainable_variables[-1]
    for optimizer in (gan.generator_optimizer, gan.critic_optimizer):
        optimizer.learning_rate = 0.0
    found = []
    # Eight images an update, four updates from one change to the next.
    for sign, epochs in ((1.0, 3), (1.0, 2), (-1.0, 4)):
        bias.assign([100.0 * sign])
        history = fit(gan, epochs=epochs)
        found += history["augmentation_probability"]
    # Sums over the updates since the change: all 1; 1, 1, -1, -1; ...
    steps = [0.0] * 18
    p, total = 0.0, 0.0
    signs = [1.0] * 10 + [-1.0] * 8
    for i, sign in enumerate(signs):
        total += sign / 4
        if i % 4 == 3:
            p = min(1.0, max(0.0, p + 0.32 * np.sign(total - 0.5)))
            total = 0.0
        steps[i] = p
    expected = np.reshape(steps, (-1, 2)).mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    gan.save(tmp_path / "gan.keras")
    loaded = keras.saving.load_model(tmp_path / "gan.keras")
    for a, b in zip(gan.weights, loaded.weights):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    again = fit(loaded, epochs=3)["augmentation_probability"]
    np.testing.assert_allclose(
        again, fit(gan, epochs=3)["augmentation_probability"]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augmentation.get("colour"), "'translation'.*'colour'"),
        (lambda: augmentation.get("cutout,cutout"), "at most once.*cutout"),
        (lambda: augmentation.get([]), r"Received: \[\]"),
        (lambda: augmentation.get(3), "augmentation=3"),
        (lambda: augmentation.get({"a": 1}), "augmentation={'a': 1}"),
        (
            lambda: augmentation.Augmentation(probability=1.5),
            "probability=1.5",
        ),
        (lambda: augmentation.AdaptiveAugmentation(target=-1), "target=-1"),
        (lambda: augmentation.AdaptiveAugmentation(images=0), "images=0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_that_cannot_be_augmented():
    generator = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(1, 1)]
    )
    critic = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(1, 1)]
    )
    with pytest.raises(ValueError, match=r"known size.*\(None, None, None, 1"):
        PairedGAN(generator, critic, augmentation="cutout")
    images, inputs = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    both = layers.Conv2D(1, 3)(layers.Concatenate()([images, inputs]))
    critic = keras.Model([images, inputs], both)
    with pytest.raises(ValueError, match="'color' only.*'cutout'"):
        PairedGAN(generator, critic, augmentation="color,cutout")
    PairedGAN(generator, critic, augmentation="color")


def test_it_trains_compiled():
    gan = make_gan(
        "san",
        compiled=True,
        augmentation=augmentation.AdaptiveAugmentation(images=100),
        loss="relativistic",
        joint=True,
    )
    history = fit(gan, some_images(), epochs=2)
    assert np.isfinite(history["loss"]).all()
