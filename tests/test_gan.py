import keras
import numpy as np
import pytest
from helpers import BACKEND, images_of, to_numpy
from keras import layers, ops
from keras.regularizers import L2

import keras_san
from keras_san import GAN, SANConv2D, SANDense, losses, normalizers, penalties


def make_networks(normalizer="san", channels=1, num_classes=None):
    keras.utils.set_random_seed(0)
    latents = keras.Input((5,))
    x = layers.Dense(4 * 4 * 4)(latents)
    labels = []
    if num_classes:
        labels = [keras.Input((), dtype="int32")]
        x = layers.Add()([x, layers.Embedding(num_classes, 64)(labels[0])])
    x = layers.Reshape((4, 4, 4))(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2DTranspose(channels, 4, 2, "same", activation="tanh")(x)
    generator = keras.Model([latents, *labels] if labels else latents, x)

    images = keras.Input((8, 8, channels))
    y = SANConv2D(4, 3, normalizer=normalizer, name="first")(images)
    y = SANConv2D(4, 4, 2, normalizer=normalizer)(layers.LeakyReLU(0.1)(y))
    y = layers.Flatten()(layers.LeakyReLU(0.1)(y))
    if num_classes:
        labels = [keras.Input((), dtype="int32")]
        y = layers.Concatenate()(
            [y, layers.Embedding(num_classes, 4)(labels[0])]
        )
    y = SANDense(1, normalizer=normalizer)(y)
    critic = keras.Model([images, *labels] if labels else images, y)
    return generator, critic


def make_gan(
    normalizer="san", num_classes=None, compile=True, compiled=False, **kwargs
):
    """A GAN whose steps are not compiled unless that is tested."""
    networks = make_networks(normalizer, num_classes=num_classes)
    gan = GAN(
        *networks, latent_dim=5, seed=1, num_classes=num_classes, **kwargs
    )
    if compile:
        gan.compile(
            keras.optimizers.Adam(1e-2, 0.5, 0.9),
            keras.optimizers.Adam(1e-2, 0.5, 0.9),
            run_eagerly=BACKEND == "tensorflow" and not compiled,
        )
    return gan


def some_images(n=16):
    return images_of(n, 8, 8, 1)


def fit(gan, images=None, **kwargs):
    settings = {"batch_size": 8, "verbose": 0, "shuffle": False, **kwargs}
    images = some_images() if images is None else images
    return gan.fit(images, **settings).history


@pytest.mark.parametrize(
    "loss", ["hinge", "wasserstein", "non_saturating", "relativistic"]
)
def test_losses(loss):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 7, 1)) * 2
    expected = {
        "hinge": (
            np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
            -fake.mean(),
        ),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
        "non_saturating": (
            np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean(),
            np.log1p(np.exp(-fake)).mean(),
        ),
        "relativistic": (
            np.log1p(np.exp(fake - real)).mean(),
            np.log1p(np.exp(real - fake)).mean(),
        ),
    }[loss]
    found = losses.get(loss)
    real, fake = (ops.convert_to_tensor(x, "float32") for x in (real, fake))
    np.testing.assert_allclose(found.critic(real, fake), expected[0], rtol=1e-5)
    np.testing.assert_allclose(
        found.generator(real, fake), expected[1], rtol=1e-5
    )
    config = keras.saving.serialize_keras_object(found)
    assert type(losses.get(config)) is type(found)


def test_unknown_loss():
    with pytest.raises(ValueError, match="Received: loss='hing'"):
        losses.get("hing")


@pytest.mark.parametrize(
    ("normalizer", "compiled"),
    [
        (normalizers.SparsityAware(), True),
        (normalizers.SparsityAware(form="project"), False),
        (normalizers.Spectral(), False),
        (normalizers.Spectral(form="project"), False),
        (normalizers.BidirectionalSpectral(), False),
        (normalizers.ConvSpectral(), False),
        (None, False),
    ],
)
def test_fit_moves_both_networks(normalizer, compiled):
    gan = make_gan(normalizer, compiled=compiled)
    before = [to_numpy(v) for v in gan.trainable_variables]
    history = fit(gan, some_images(8), epochs=2)
    assert all(len(v) == 2 and np.isfinite(v).all() for v in history.values())
    np.testing.assert_allclose(
        history["loss"],
        np.add(history["critic_loss"], history["generator_loss"]),
        rtol=1e-5,
    )
    for variable, value in zip(gan.trainable_variables, before):
        # With all images inside of the hinge's margin, the last bias moves
        # the losses of real and generated ones by opposite amounts.
        if variable.shape != (1,):
            moved = np.abs(to_numpy(variable) - value).max()
            assert moved > 1e-4, variable.path


def test_a_step_iterates_once_on_the_weights_before_it():
    gan = make_gan("sn")
    norms = [n for layer in gan.critic.layers for n in norms_of(layer)]

    def vectors():
        return [to_numpy(n.vectors[0]) for n in norms]

    before = vectors()
    fit(gan, some_images(8))
    fresh = make_gan("sn")
    for norm, start, after in zip(
        [n for layer in fresh.critic.layers for n in norms_of(layer)],
        before,
        vectors(),
    ):
        kernel = to_numpy(norm.get_kernel())
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u = matrix.T @ (matrix @ start[0])
        np.testing.assert_allclose(
            after[0], u / np.linalg.norm(u), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            to_numpy(norm.norm), np.linalg.norm(matrix, 2), rtol=1e-4
        )


def norms_of(layer):
    return getattr(layer, "normalizations", [])


def test_norms_are_measured_once_for_each_critic_update():
    gan = make_gan(
        normalizers.Spectral(update_interval=1000),
        critic_steps=2,
        compiled=True,
    )
    fit(gan, batch_size=6)  # Two whole batches, one of 4, of 2 updates each.
    counter = gan.critic.get_layer("first").normalizations[0].counter
    assert int(to_numpy(counter)) == 6
    assert int(to_numpy(gan.critic_optimizer.iterations)) == 6
    assert int(to_numpy(gan.generator_optimizer.iterations)) == 3


def test_the_average_follows_the_generator():
    gan = make_gan(None, ema=0.5)
    start = [to_numpy(w) for w in gan.generator.weights]
    fit(gan, some_images(8))  # One step: decay min(0.5, 2 / 11).
    decay = 2 / 11
    for first, now, average in zip(
        start, gan.generator.weights, gan.averaged_generator.weights
    ):
        np.testing.assert_allclose(
            to_numpy(average),
            decay * first + (1 - decay) * to_numpy(now),
            rtol=1e-4,
            atol=1e-6,
        )
    assert not gan.averaged_generator.trainable_variables


def test_generate_leaves_training_alone():
    gan = make_gan(None, ema=0.9)
    fit(gan, some_images(8))
    state = to_numpy(gan.seed_generator.state)
    weights = [to_numpy(w) for w in gan.weights]
    images = gan.generate(5, seed=3, batch_size=2)
    assert images.shape == (5, 8, 8, 1) and images.dtype == "float32"
    assert np.abs(images).max() <= 1.0
    np.testing.assert_allclose(
        images, gan.generate(5, seed=3), rtol=1e-5, atol=1e-6
    )
    assert np.abs(images - gan.generate(5, seed=4)).max() > 0.01
    assert np.abs(gan.generate(5) - gan.generate(5)).max() > 0.01
    latents = np.random.default_rng(3).standard_normal((5, 5), dtype="float32")
    np.testing.assert_allclose(
        images, to_numpy(gan.averaged_generator(latents)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(to_numpy(gan.seed_generator.state), state)
    for weight, value in zip(gan.weights, weights):
        np.testing.assert_array_equal(to_numpy(weight), value)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_loaded_gan_trains_on_as_if_nothing_had_been(ema, tmp_path):
    gan = make_gan("sn", ema=ema)
    fit(gan)
    path = str(tmp_path / "gan.keras")
    gan.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.get_config()["ema"] == ema
    np.testing.assert_array_equal(
        gan.generate(3, seed=0), loaded.generate(3, seed=0)
    )
    expected, found = fit(gan), fit(loaded)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
    for ours, theirs in zip(gan.weights, loaded.weights):
        np.testing.assert_allclose(
            to_numpy(ours), to_numpy(theirs), rtol=1e-4, atol=1e-5
        )


def test_class_conditional():
    gan = make_gan(None, num_classes=3)
    images = some_images(8)
    labels = np.arange(len(images)) % 3
    gan.fit(images, labels, batch_size=8, verbose=0)
    assert gan.generate(4, labels=[0, 1, 2, 0]).shape == (4, 8, 8, 1)
    one, two = (gan.generate(1, labels=[i], seed=0) for i in (0, 1))
    assert np.abs(one - two).max() > 1e-4
    with pytest.raises(ValueError, match="4 ints from 0 to 2"):
        gan.generate(4, labels=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="no labels, with num_classes=3"):
        fit(gan)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(dtype):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        # What scales the losses of float16 branches while it runs.
        if dtype == "mixed_float16":
            gan = make_gan("sn", compiled=True)
        else:
            gan = make_gan()
    finally:
        keras.config.set_dtype_policy(before)
    scaled = isinstance(
        gan.critic_optimizer, keras.optimizers.LossScaleOptimizer
    )
    assert scaled == (dtype == "mixed_float16")
    assert isinstance(
        gan.generator_optimizer, keras.optimizers.LossScaleOptimizer
    ) == (dtype == "mixed_float16")
    history = fit(gan)
    assert np.isfinite(history["loss"]).all()


@pytest.mark.skipif(
    BACKEND == "torch", reason="torch.compile takes minutes; run elsewhere"
)
def test_jit_is_close_to_eager():
    """XLA draws other latents, so only the first update can be compared."""
    histories = []
    for settings in ({"run_eagerly": True}, {"jit_compile": True}):
        gan = make_gan("sn", compile=False)
        gan.compile(**settings)
        histories.append(fit(gan, some_images(8)))
    for name in ("critic_loss", "real_logit"):
        np.testing.assert_allclose(
            histories[0][name], histories[1][name], atol=0.02
        )


@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras has none there; run elsewhere"
)
def test_several_steps_per_execution():
    gan, other = make_gan("sn"), make_gan("sn", compile=False)
    other.compile(
        keras.optimizers.Adam(1e-2, 0.5, 0.9),
        keras.optimizers.Adam(1e-2, 0.5, 0.9),
        steps_per_execution=2,
    )
    expected, found = fit(gan, batch_size=4), fit(other, batch_size=4)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)


def test_critic_steps_with_a_penalty_by_hand():
    """A linear critic has its kernel for a gradient everywhere."""
    kernel = np.random.default_rng(0).normal(size=(64, 1)) * 0.3
    generator, _ = make_networks()
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(1, name="last", kernel_regularizer=L2(0.25)),
        ]
    )
    critic.get_layer("last").kernel.assign(kernel)
    gan = GAN(
        generator,
        critic,
        latent_dim=5,
        loss=OfRealImages(),
        critic_steps=2,
        penalty=penalties.GradientPenalty(weight=3.0),
    )
    gan.compile(
        "sgd",
        keras.optimizers.SGD(0.01),
        run_eagerly=BACKEND == "tensorflow",
    )
    images = some_images(8)
    fit(gan, images)
    for part in (images[:4], images[4:]):
        norm = np.linalg.norm(kernel)
        gradient = part.reshape(4, 64).mean(axis=0)[:, None]
        gradient = gradient + 3.0 * 2 * (norm - 1) * kernel / norm
        gradient = gradient + 2 * 0.25 * kernel
        kernel = kernel - 0.01 * gradient
    np.testing.assert_allclose(
        to_numpy(critic.get_layer("last").kernel), kernel, rtol=1e-4, atol=1e-6
    )


class OfRealImages(losses.AdversarialLoss):
    def critic(self, real, fake):
        return ops.mean(real)

    def generator(self, real, fake):
        return 0.0 * ops.mean(fake)


def test_gradient_penalty_points_and_files(tmp_path):
    rng = np.random.default_rng(0)
    real, fake, share = (
        ops.convert_to_tensor(rng.uniform(size=shape), "float32")
        for shape in ((4, 3, 3, 1), (4, 3, 3, 1), (4, 1, 1, 1))
    )
    penalty = penalties.GradientPenalty(2.0)
    found = penalty(2.0 * penalty.points(real, fake, share))
    points = to_numpy(real) + to_numpy(share) * to_numpy(fake - real)
    norms = 2 * np.linalg.norm(points.reshape(4, -1), axis=1)
    expected = 2.0 * np.mean((norms - 1) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gan = make_gan(None, penalty=penalty)
    assert np.isfinite(fit(gan)["loss"]).all()
    gan.save(str(tmp_path / "gan.keras"))
    loaded = keras.saving.load_model(str(tmp_path / "gan.keras"))
    assert [x.weight for x in loaded.penalties] == [2.0]
    with pytest.raises(ValueError, match="Received: weight=0"):
        penalties.GradientPenalty(0)


def test_divergence_stops_fit_and_names_the_layer():
    message = "layer first is not finite|NaN or infinity in .*first/kernel"
    for compiled in {False, BACKEND == "tensorflow"}:
        gan = make_gan(compiled=compiled)
        kernel = gan.critic.get_layer("first").kernel
        kernel.assign(np.full(kernel.shape, np.nan))
        with pytest.raises(ValueError, match=message):
            fit(gan, some_images(8))
    # Where the critic is not normalized, the end of the epoch tells.
    gan = make_gan(None)
    gan.generator.trainable_variables[0].assign(
        np.full(gan.generator.trainable_variables[0].shape, np.inf)
    )
    with pytest.raises(ValueError, match="diverged in epoch 1.*loss="):
        fit(gan)


def test_a_last_update_that_diverges_stops_before_a_checkpoint(tmp_path):
    """The loss of the last step is that from before its update."""

    class Diverge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weight = self.model.generator.trainable_variables[0]
            weight.assign(np.full(weight.shape, np.nan))

    gan = make_gan(None)
    # The first epoch diverges once it was found sound, the second is not.
    callbacks = [keras_san.callbacks.Checkpoint(tmp_path), Diverge()]
    with pytest.raises(ValueError, match="NaN or infinity in .*dense"):
        fit(gan, epochs=2, callbacks=callbacks)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_1.keras"]
    # With a finite loss, too.
    stop = keras_san.callbacks.StopWhenNotFinite()
    stop.set_model(gan)
    with pytest.raises(ValueError, match="Received: loss=0.5, and NaN or inf"):
        stop.on_epoch_end(0, {"loss": 0.5})


def test_a_batch_of_fewer_images_than_critic_steps():
    """The last of nine is both of its updates."""
    gan = make_gan(None, critic_steps=2, compiled=True)
    assert np.isfinite(fit(gan, some_images(9))["loss"]).all()
    assert int(to_numpy(gan.critic_optimizer.iterations)) == 4


def test_own_optimizers():
    gan = make_gan(None, compile=False)
    gan.compile("sgd", "rmsprop")
    assert isinstance(gan.generator_optimizer, keras.optimizers.SGD)
    assert isinstance(gan.critic_optimizer, keras.optimizers.RMSprop)
    gan.compile()
    assert gan.generator_optimizer.get_config()["beta_2"] == 0.9
    assert float(gan.optimizer.learning_rate) == np.float32(2e-4)
    shared = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="an optimizer each"):
        gan.compile(shared, shared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 6}, "latent_dim=6"),
        ({"critic_steps": 0}, "critic_steps=0"),
        ({"critic_steps": 1.5}, "critic_steps=1.5"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"penalty": 10}, "penalty=10"),
        ({"num_classes": 3}, "num_classes=3"),
        ({"loss": "l2"}, "loss='l2'"),
    ],
)
def test_bad_settings(settings, message):
    generator, critic = make_networks(None)
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        GAN(generator, critic, **{"latent_dim": 5, **settings})


def test_bad_networks():
    generator, critic = make_networks(None)
    with pytest.raises(ValueError, match="generator=None"):
        GAN(None, critic, latent_dim=5)
    with pytest.raises(ValueError, match="built"):
        GAN(generator, keras.Sequential([layers.Dense(1)]), latent_dim=5)
    _, other = make_networks(None, channels=3)
    with pytest.raises(ValueError, match="must take the images"):
        GAN(generator, other, latent_dim=5)


def test_bad_data():
    gan = make_gan(None, critic_steps=4)
    with pytest.raises(ValueError, match=r"shape \(.*, 9, 8, 1\)"):
        fit(gan, np.zeros((8, 9, 8, 1), "float32"))


def test_an_interrupted_training_resumes_as_if_it_had_not_been(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        # Too late for a backup of this epoch, in the middle of it.
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations.numpy()) == 3:
                raise InterruptedError

    def train(*more):
        gan = make_gan("sn", ema=0.9)
        backup = keras.callbacks.BackupAndRestore(
            str(tmp_path), delete_checkpoint=False
        )
        history = fit(gan, epochs=2, callbacks=[backup, *more])
        return history, [to_numpy(w) for w in gan.weights]

    with pytest.raises(InterruptedError):
        train(Interrupt())
    resumed, weights = train()
    gan = make_gan("sn", ema=0.9)
    whole = fit(gan, epochs=2)
    for name in ("loss", "critic_loss", "generator_loss"):
        # The second epoch is what was left to train.
        np.testing.assert_allclose(
            resumed[name], whole[name][1:], rtol=1e-5, atol=1e-6, err_msg=name
        )
    for weight, found in zip(gan.weights, weights, strict=True):
        np.testing.assert_allclose(
            found, to_numpy(weight), rtol=1e-5, atol=1e-6, err_msg=weight.path
        )


@pytest.mark.skipif(
    BACKEND == "torch",
    reason="SavedModels of PyTorch need torch_xla; run elsewhere",
)
@pytest.mark.filterwarnings("ignore:.*native_serialization:DeprecationWarning")
def test_export_needs_no_keras_san(tmp_path):
    gan = make_gan(None, ema=0.9)
    fit(gan, some_images(8))
    tf = pytest.importorskip(
        "tensorflow", reason="SavedModels are TensorFlow's; runs there"
    )
    gan.averaged_generator.export(str(tmp_path), verbose=False)
    # All is in the graph: nothing in it calls back into Python.
    assert b"PyFunc" not in (tmp_path / "saved_model.pb").read_bytes()
    latents = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(
        loaded.serve(latents).numpy(),
        to_numpy(gan.averaged_generator(latents)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_strip_critic():
    gan = make_gan()
    images = some_images(8)
    fit(gan, images)
    np.testing.assert_allclose(
        to_numpy(keras_san.strip(gan.critic)(images)),
        to_numpy(gan.critic(images)),
        atol=1e-5,
    )


def test_a_file_of_what_is_not_compiled(tmp_path):
    gan = make_gan(None, compile=False)
    gan.save(tmp_path / "gan.keras")
    again = keras.saving.load_model(tmp_path / "gan.keras")
    assert not again.compiled
    for a, b in zip(gan.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(a, b)
