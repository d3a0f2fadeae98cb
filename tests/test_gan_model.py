"""GANs, as users of `keras.Model` expect them to be."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, images_of, to_numpy
from keras import layers, ops
from test_attribute_gan import ATTRIBUTES
from test_attribute_gan import IMAGES as FACES
from test_attribute_gan import make_gan as make_attribute_gan
from test_gan import fit, make_gan, make_networks, some_images

from keras_san import GAN, PairedGAN, losses, normalizers

# Older versions have one optimizer a model, and do not tell equal names apart.
SEVERAL = hasattr(keras.optimizers, "MultiOptimizer")


def linear_critic(*more, shape=(8, 8, 1), units=1):
    return keras.Sequential(
        [keras.Input(shape), *more, layers.Flatten(), layers.Dense(units)]
    )


def with_critic(critic, compile=True, **kwargs):
    """A GAN whose critic alone is trained, by plain gradient descent."""
    generator, _ = make_networks()
    gan = GAN(generator, critic, latent_dim=5, seed=1, **kwargs)
    if compile:
        gan.compile(
            keras.optimizers.SGD(0.0),
            keras.optimizers.SGD(0.1),
            run_eagerly=BACKEND == "tensorflow",
        )
    return gan


def test_the_old_format_is_refused_before_it_empties_a_file(tmp_path):
    path = tmp_path / "gan.h5"
    path.write_text("good")
    with pytest.raises(ValueError, match="cannot hold a GAN.*Received: "):
        make_gan(None).save(path)
    assert path.read_text() == "good"


class TestCompile:
    @pytest.mark.parametrize(
        "wrong", [{"loss": "wasserstein"}, {"metrics": ["mse"]}]
    )
    def test_refuses_what_it_has_no_use_for(self, wrong):
        with pytest.raises(ValueError, match=f"constructor.*{[*wrong][0]}="):
            make_gan(None, compile=False).compile("adam", "adam", **wrong)

    def test_one_name_or_config_makes_two_optimizers(self):
        gan = make_gan(None, compile=False)
        config = keras.optimizers.serialize(keras.optimizers.Adam(0.5))
        for twice in ("adam", config):
            gan.compile(twice, twice)
            assert gan.generator_optimizer is not gan.critic_optimizer
        shared = keras.optimizers.Adam()
        with pytest.raises(ValueError, match="an optimizer each"):
            gan.compile(shared, shared)


class TestFit:
    def test_takes_one_callback(self):
        seen = []
        fit(
            make_gan(None),
            callbacks=keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(epoch)
            ),
        )
        assert seen == [0]

    @pytest.mark.parametrize(
        "weights", [{"sample_weight": np.ones(16)}, {"class_weight": {0: 1.0}}]
    )
    def test_refuses_weights(self, weights):
        gan = make_gan(None, num_classes=3)
        with pytest.raises(ValueError, match="same weight.*sample_weight"):
            gan.fit(some_images(), np.zeros(16, "int32"), verbose=0, **weights)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (lambda x: {"image": x}, r"x\['image'\].*dict of \['image'\]"),
            (lambda x: (x, {"label": x[:, 0]}), r"dict of \['label'\]"),
            (lambda x: (x * 127).astype("uint8"), "127.5.*dtype uint8"),
            (lambda x: x > 0, "floats.*dtype bool"),
            (lambda x: x[:, :6], r"\(None, 8, 8, 1\).*\(.*, 6, 8, 1\)"),
            (lambda x: x[..., 0], r"\(None, 8, 8, 1\).*\(.*, 8, 8\)"),
        ],
    )
    def test_says_what_a_batch_must_be(self, data, message):
        with pytest.raises(ValueError, match=message):
            make_gan(None).step(data(some_images(8)))

    def test_takes_tuples_of_one(self):
        tf = pytest.importorskip("tensorflow", reason="its datasets; run there")
        dataset = tf.data.Dataset.from_tensor_slices((some_images(8),))
        assert np.isfinite(
            fit(make_gan(None), dataset.batch(4), batch_size=None)["loss"]
        )

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("wrong", [-1, 3])
    def test_labels_out_of_range(self, wrong, compiled):
        labels = np.array([0, 1, 2, wrong] * 4)
        gan = make_gan(None, num_classes=3, compiled=compiled)
        message = r"Labels must be ints from 0 to 2\. Received: values from "
        batches = ((some_images(8), labels[:8]) for _ in range(1))
        for data in ((some_images(), labels), (batches,)):
            with pytest.raises(ValueError, match=message):
                gan.fit(*data, shuffle=False, verbose=0)

    @pytest.mark.parametrize("name", ["critic", "generator"])
    def test_warns_of_a_frozen_network(self, name):
        gan = make_gan(None, compile=False)
        getattr(gan, name).trainable = False
        gan.compile(run_eagerly=BACKEND == "tensorflow")
        with pytest.warns(UserWarning, match=f"No weight of the {name} is"):
            fit(gan)

    @pytest.mark.skipif(
        BACKEND != "tensorflow", reason="only its graphs forget; run there"
    )
    def test_another_size(self):
        """Networks that take any size get images of a second one."""
        gan = PairedGAN(
            keras.Sequential(
                [
                    keras.Input((None, None, 1)),
                    layers.Conv2D(1, 3, padding="same"),
                ]
            ),
            keras.Sequential(
                [keras.Input((None, None, 1)), layers.Conv2D(1, 3)]
            ),
        )
        gan.compile()
        for size in (8, 12, 8):
            images = images_of(4, size, size, 1)
            history = gan.fit(images, images, verbose=0).history
            assert np.isfinite(history["loss"]).all()
        # One size is all that other networks take, and the error says so.
        gan = make_gan(None, compiled=True)
        fit(gan, some_images(8))
        with pytest.raises(ValueError, match=r"8, 8, 1\).*8, 9, 9, 1\)"):
            fit(gan, images_of(8, 9, 9, 1))


class TestNetworks:
    @pytest.mark.parametrize("units", [1, 5])
    def test_logits(self, units):
        generator, _ = make_networks()
        critic = linear_critic(units=units)
        if units == 1:
            assert GAN(generator, critic, 5).critic is critic
            parts = keras.Sequential(
                [keras.Input((8, 8, 1)), layers.Conv2D(1, 3)]
            )
            assert GAN(generator, parts, 5).critic is parts
            return
        with pytest.raises(ValueError, match=r"one logit.*\(None, 5\)"):
            GAN(generator, critic, 5)

    def test_subclassed(self):
        class Critic(keras.Model):
            def call(self, inputs):
                return ops.mean(inputs, axis=(1, 2))

        generator, _ = make_networks()
        critic = Critic()
        critic(some_images(2))
        with pytest.raises(ValueError, match=r"keras.Model\(inputs, model"):
            GAN(generator, critic, 5)
        inputs = keras.Input((8, 8, 1))
        GAN(generator, keras.Model(inputs, critic(inputs)), 5)

    def test_a_vector_of_losses_is_summed(self):
        class Each(layers.Layer):
            def call(self, inputs):
                self.add_loss(0.1 * ops.mean(inputs**2, axis=(1, 2, 3)))
                return inputs

        class Sum(layers.Layer):
            def call(self, inputs):
                each = 0.1 * ops.mean(inputs**2, axis=(1, 2, 3))
                self.add_loss(ops.sum(each))
                return inputs

        found = []
        for layer in (Each, Sum):
            keras.utils.set_random_seed(0)
            conv = layers.Conv2D(2, 3, name="conv")
            gan = with_critic(linear_critic(conv, layer()))
            fit(gan, some_images(8))
            found.append(to_numpy(conv.kernel))
        np.testing.assert_allclose(*found, rtol=1e-5)

    def test_tied_weights(self):
        """A normalized layer that reads a variable of another layer."""
        from keras_san import SANWrapper

        class Tied(layers.Dense):
            def call(self, inputs):
                # Keras does not know that it is a variable of this layer.
                return super().call(inputs) + ops.sum(other.kernel)

        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        other = layers.Dense(3)
        x = other(layers.Flatten()(inputs))
        critic = keras.Model(inputs, SANWrapper(Tied(1))(x))
        gan = with_critic(critic)
        before = to_numpy(other.kernel)
        fit(gan, some_images(8))
        assert np.abs(to_numpy(other.kernel) - before).max() > 1e-4


class TestAverage:
    @pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
    def test_dtypes(self, dtype):
        if (BACKEND, dtype) == ("jax", "float64"):
            pytest.skip("JAX has no float64 by default; run on tensorflow")
        keras.utils.set_random_seed(0)
        generator = keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(64, activation="tanh", dtype=dtype),
                layers.Reshape((8, 8, 1), dtype="float32"),
            ]
        )
        gan = GAN(generator, linear_critic(), 5, ema=0.5, seed=1)
        gan.compile("sgd", "sgd", run_eagerly=BACKEND == "tensorflow")
        first = to_numpy(generator.weights[0])
        fit(gan, some_images(8))
        now, average = (
            to_numpy(network.weights[0])
            for network in (generator, gan.averaged_generator)
        )
        expected = (2 * first + 9 * now) / 11
        np.testing.assert_allclose(average, expected, rtol=0.01, atol=1e-3)

    def test_paths_and_lambdas(self):
        keras.utils.set_random_seed(0)
        inner = keras.Sequential(
            [
                keras.Input((64,)),
                layers.BatchNormalization(),
                layers.Lambda(lambda x: x * 2.0),
            ]
        )
        generator = keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(64),
                layers.BatchNormalization(),
                inner,
                layers.Lambda(lambda x: x / 2.0),
                layers.Reshape((8, 8, 1)),
            ]
        )
        gan = GAN(generator, linear_critic(), 5, ema=0.5)
        gan.compile(run_eagerly=BACKEND == "tensorflow")
        fit(gan, some_images(8))
        paths = [variable.path for variable in gan.weights]
        assert len({*paths}) == len(paths)
        if SEVERAL:
            assert gan.get_state_tree()["non_trainable_variables"]
        with pytest.raises(ValueError, match="ema='0.9'"):
            GAN(generator, linear_critic(), 5, ema="0.9")


class TestOptimizers:
    @pytest.mark.parametrize("swap", [False, True])
    def test_their_averages(self, swap):
        """Each network ends with its own, as a `keras.Model` does."""
        if swap and not SEVERAL:
            pytest.skip("this Keras has no such callback for two optimizers")
        gan = make_gan(None, compile=False)
        gan.compile(
            *(
                keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
                for _ in range(2)
            ),
            run_eagerly=BACKEND == "tensorflow",
        )
        kernels = [gan.generator.weights[0], gan.critic.weights[0]]
        seen = [[to_numpy(kernel)] for kernel in kernels]

        class Record(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if BACKEND == "jax":
                    self.model.jax_state_sync()
                for values, kernel in zip(seen, kernels):
                    values.append(to_numpy(kernel))

        callbacks = [Record()]
        if swap:
            callbacks.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
        fit(gan, epochs=2, callbacks=callbacks)
        for kernel, (_, average, *values) in zip(kernels, seen):
            for value in values:
                average = 0.5 * average + 0.5 * value
            np.testing.assert_allclose(
                to_numpy(kernel), average, rtol=1e-4, atol=1e-5
            )

    def test_overwriting(self):
        gan = make_gan(None, compile=False)
        gan.compile(
            keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
            keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
            run_eagerly=BACKEND == "tensorflow",
        )
        assert np.isfinite(fit(gan)["loss"]).all()
        for optimizer in gan.optimizer.optimizers:
            variable = optimizer._trainable_variables[0]
            average = optimizer._model_variables_moving_average[0]
            np.testing.assert_array_equal(to_numpy(variable), to_numpy(average))

    def test_gradient_accumulation(self):
        """Two halves make the update of a whole batch."""
        images, kernels = some_images(8), []
        for batch_size, steps in ((8, None), (4, 2)):
            keras.utils.set_random_seed(0)
            gan = with_critic(
                linear_critic(), compile=False, loss=losses.Wasserstein()
            )
            kernel = gan.generator.trainable_variables[-2]
            kernel.assign(np.zeros(kernel.shape))
            gan.compile(
                keras.optimizers.SGD(0.0, gradient_accumulation_steps=steps),
                keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps),
                run_eagerly=BACKEND == "tensorflow",
            )
            fit(gan, images, batch_size=batch_size)
            kernels.append(to_numpy(gan.critic.trainable_variables[0]))
        np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-6)

    def test_a_schedule_of_keras(self):
        """It acts on both, each from its own rate; on older Keras, on one."""
        gan = make_gan(None)
        gan.critic_optimizer.learning_rate = 0.02
        fit(
            gan,
            callbacks=[
                keras.callbacks.LearningRateScheduler(lambda e, rate: rate / 2)
            ],
        )
        rates = gan.generator_optimizer, gan.critic_optimizer
        rates = [float(to_numpy(x.learning_rate)) for x in rates]
        expected = [0.005, 0.01 if SEVERAL else 0.02]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)


class TestEvaluate:
    @pytest.mark.parametrize("compiled", [False, True])
    def test_by_hand(self, compiled):
        gan = make_gan("san", ema=0.9, compiled=compiled)
        fit(gan, some_images(8))
        images = images_of(8, 8, 8, 1, seed=3)
        before = [to_numpy(v) for v in gan.variables]
        found = gan.evaluate(images, batch_size=8, verbose=0, return_dict=True)
        metrics = {id(v) for v in gan.metrics_variables}
        for variable, value in zip(gan.variables, before):
            if id(variable) not in metrics:
                np.testing.assert_array_equal(to_numpy(variable), value)
        logits = to_numpy(gan.critic(images, training=False))
        expected = np.maximum(0, 1 - logits).mean()
        np.testing.assert_allclose(
            found["real_logit"], logits.mean(), rtol=1e-4, atol=1e-5
        )
        fake = found["critic_loss"] - expected
        assert found["generator_loss"] == pytest.approx(
            -found["fake_logit"], abs=1e-5
        )
        assert fake >= max(0.0, 1.0 + found["fake_logit"]) - 1e-4
        assert found["loss"] == pytest.approx(
            found["critic_loss"] + found["generator_loss"], abs=1e-5
        )

    def test_overfitting(self):
        gan = make_gan(None)
        history = fit(
            gan,
            epochs=2,
            validation_data=(images_of(8, 8, 8, 1, seed=3),),
        )
        for i in range(2):
            real, fake = history["real_logit"][i], history["fake_logit"][i]
            expected = (real - history["val_real_logit"][i]) / (real - fake)
            assert history["overfitting"][i] == pytest.approx(expected)
        assert len(history["val_critic_loss"]) == 2

    def test_training_is_the_same_with_it(self):
        expected, found = make_gan("sn"), make_gan("sn")
        fit(expected, epochs=2)
        fit(found, epochs=2, validation_data=(some_images(8),))
        for a, b in zip(expected.weights, found.weights):
            np.testing.assert_allclose(
                to_numpy(a), to_numpy(b), rtol=1e-5, atol=1e-6
            )

    def test_other_gans(self):
        gan = make_attribute_gan()
        history = gan.fit(
            *(FACES, ATTRIBUTES),
            validation_data=(FACES, ATTRIBUTES),
            verbose=0,
        ).history
        assert {"val_class_loss", "val_cycle_loss"} <= {*history}


@pytest.mark.parametrize(
    ("count", "batch_size"), [(0, 64), (-1, 64), (2, 0), (1.5, 64)]
)
def test_generate(count, batch_size):
    gan = make_gan(None, compile=False)
    if (count, batch_size) == (0, 64):
        assert gan.generate(0).shape == (0, 8, 8, 1)
        return
    with pytest.raises(ValueError, match="must be an int"):
        gan.generate(count, batch_size=batch_size)


@pytest.mark.parametrize("module", [losses, normalizers])
def test_get_of_a_config_of_something_else(module):
    for config in ({"class_name": "None such", "config": {}}, {"a": 1}):
        with pytest.raises(ValueError, match="Unknown.*Received"):
            module.get(config)
