"""SPADE's networks, and the GAN whose critic sees label maps."""

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    ignore_torch_copies,
    images_of,
    to_numpy,
    trainable_parameters,
)

import keras_san
from keras_san import PairedGAN, SANConv2D, normalizers
from keras_san.networks import spade

pytestmark = ignore_torch_copies

RNG = np.random.default_rng(0)
CLASSES = 4
MAPS = np.eye(CLASSES, dtype="uint8")[RNG.integers(CLASSES, size=(4, 32, 64))]
IMAGES = images_of(4, 32, 64, 3)


def make_generator(resolution=(32, 64), **kwargs):
    keras.utils.set_random_seed(0)
    kwargs = {"width": 0.02, "upsamplings": 5, **kwargs}
    return spade.generator(resolution, CLASSES, **kwargs)


def make_critic(resolution=(64, 64), **kwargs):
    keras.utils.set_random_seed(0)
    kwargs = {"width": 0.03, **kwargs}
    return spade.critic(resolution, CLASSES, **kwargs)


def convolution(size, inputs, outputs, bias=True):
    return size * size * inputs * outputs + bias * outputs


class TestParameters:
    def test_generator(self):
        """Figures 11 and 14, layer by layer: 93.0 million."""

        def modulation(channels):
            return convolution(3, 36, 128) + 2 * convolution(3, 128, channels)

        def block(inputs, outputs):
            middle = min(inputs, outputs)
            count = modulation(inputs) + convolution(3, inputs, middle)
            count += modulation(middle) + convolution(3, middle, outputs)
            if inputs != outputs:
                count += modulation(inputs)
                count += convolution(1, inputs, outputs, bias=False)
            return count

        expected = convolution(3, 36, 1024) + convolution(3, 64, 3)
        widths = [1024, 1024, 1024, 1024, 512, 256, 128, 64]
        expected += sum(map(block, widths, widths[1:]))
        assert round(expected / 1e6, 1) == 93.0
        model = spade.generator(normalizer=None)
        assert trainable_parameters(model) == expected == 93_048_003
        assert str(f"{expected:,}") in spade.generator.__doc__

    def test_critic(self):
        expected = (
            convolution(4, 39, 64)
            + convolution(4, 64, 128, bias=False)
            + convolution(4, 128, 256, bias=False)
            + convolution(4, 256, 512, bias=False)
            + convolution(4, 512, 1)
        )
        assert round(expected / 1e6, 2) == 2.80
        model = spade.critic(original=True, normalizer=None)
        assert trainable_parameters(model) == 2 * expected
        assert f"{expected:,}" in spade.critic.__doc__
        # A bias more for each filter of the three that had none.
        extra = 2 * (128 + 256 + 512)
        model = spade.critic(normalizer=None)
        assert trainable_parameters(model) == 2 * expected + extra


class TestGenerator:
    @pytest.mark.parametrize("upsamplings", [6, 7])
    def test_upsamplings(self, upsamplings):
        size = 2**upsamplings
        model = make_generator(
            (size, 2 * size), upsamplings=upsamplings, normalizer=None
        )
        assert model.output_shape == (None, size, 2 * size, 3)
        first = model.get_layer("block_1_conv_1")
        assert first.output.shape[1:3] == (1, 2)

    def test_any_size(self):
        """The same weights make the same images as with a fixed size."""
        fixed, free = (
            make_generator(resolution, normalizer=None)
            for resolution in ((32, 64), (None, None))
        )
        free.set_weights(fixed.get_weights())
        images = to_numpy(fixed(MAPS))
        assert images.shape == IMAGES.shape
        assert np.all(np.abs(images) <= 1.0)
        np.testing.assert_allclose(to_numpy(free(MAPS)), images, atol=1e-6)
        large = MAPS.repeat(2, axis=1)
        assert free(large).shape == (4, 64, 64, 3)

    def test_modulation(self):
        """The sum `normalized * (1 + gamma) + beta`, both from the map."""
        model = make_generator(normalizer=None)
        rng = np.random.default_rng(0)
        for weight in model.weights:
            if "spade_1" in weight.path:
                weight.assign(rng.normal(0, 0.3, weight.shape))
        name = "block_3"
        names = [f"{name}_norm_1", f"{name}_spade_1_hidden"]
        parts = {n: model.get_layer(n).output for n in names}
        after = model.get_layer(f"{name}_conv_1").input
        normalized, hidden, after = (
            to_numpy(x)
            for x in keras.Model(model.inputs[0], [*parts.values(), after])(
                MAPS
            )
        )
        # Its maps are a sixteenth of the image: the upper left label of each.
        factor = 16 if normalized.shape[1] == 2 else 8
        reduced = MAPS[:, ::factor, ::factor]

        def convolve(x, layer):
            layer = model.get_layer(layer)
            x = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(
                x, (3, 3), axis=(1, 2)
            )
            kernel, bias = map(to_numpy, layer.weights)
            return np.einsum("nyxcij,ijco->nyxo", windows, kernel) + bias

        expected = np.maximum(convolve(reduced, names[1]), 0.0)
        np.testing.assert_allclose(hidden, expected, atol=1e-5)
        gamma = convolve(expected, f"{name}_spade_1_gamma")
        beta = convolve(expected, f"{name}_spade_1_beta")
        expected = normalized * (1.0 + gamma) + beta
        expected = np.where(expected > 0, expected, 0.2 * expected)
        np.testing.assert_allclose(after, expected, atol=1e-5)

    def test_which_layers_are_normalized(self):
        model = make_generator()
        for layer in model.layers:
            if isinstance(layer, SANConv2D):
                inside = layer.name.endswith(("conv_1", "conv_2", "_shortcut"))
                inside = inside and "spade" not in layer.name
                assert (layer.normalizer is not None) == inside, layer.name
        layer = model.get_layer("block_1_conv_1")
        assert isinstance(layer.normalizer, normalizers.Spectral)
        assert layer.padding == "same"

    def test_starts_as_the_authors(self):
        kernel = to_numpy(
            spade.generator((64, 64), 8, width=0.25, normalizer=None)
            .get_layer("block_1_conv_1")
            .kernel
        )
        np.testing.assert_allclose(
            kernel.std(), 0.02 * np.sqrt(2 / (9 * 512)), rtol=0.01
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"resolution": (48, 64)}, r"of 32.* 32 or 64 .*\(48, 64"),
            ({"resolution": (64, 0)}, r"multiples of 32.*\(64, 0\)"),
            (
                {"resolution": (96, 64), "upsamplings": 6},
                r"multiples of 64.* 64 or 128 .*=5, .*of 32.*\(96, 64\)",
            ),
            ({"upsamplings": 4}, "5, 6 or 7.*upsamplings=4"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            make_generator(**settings)


class TestCritic:
    def test_outputs(self):
        critic = make_critic((64, 96), scales=2, normalizer=None)
        maps = np.zeros((1, 64, 96, CLASSES))
        outputs = critic([np.zeros((1, 64, 96, 3)), maps])
        shapes = [[tuple(x.shape) for x in scale] for scale in outputs]
        assert shapes == [
            [
                (1, 32, 48, 2),
                (1, 16, 24, 4),
                (1, 8, 12, 8),
                (1, 8, 12, 15),
                (1, 8, 12, 1),
            ],
            [
                (1, 16, 24, 2),
                (1, 8, 12, 4),
                (1, 4, 6, 8),
                (1, 4, 6, 15),
                (1, 4, 6, 1),
            ],
        ]

    @pytest.mark.parametrize("size", [(64, 64), (66, 71)])
    def test_the_second_scale_sees_means(self, size):
        """Means of 3 x 3 pixels, and of fewer at the border."""
        critic = spade.critic(size, 2, width=0.02, normalizer=None)
        first = critic.get_layer("scale_2_conv_1")
        seen = keras.Model(critic.inputs, first.input)
        images = RNG.normal(size=(2, *size, 3)).astype("float32")
        maps = RNG.normal(size=(2, *size, 2)).astype("float32")
        found = to_numpy(seen([images, maps]))
        both = np.concatenate([maps, images], -1).astype("float64")
        height, width = size
        expected = [
            [
                both[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean(
                    (1, 2)
                )
                for x in range(0, width, 2)
            ]
            for y in range(0, height, 2)
        ]
        expected = np.moveaxis(expected, 2, 0)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def outputs_of_scaled_kernels(self, original, factor):
        """All logits, once one raw kernel has been multiplied."""
        # An initializer that keeps the maps far from the epsilon.
        critic = make_critic(
            original=original, normalizer=None, kernel_initializer="he_normal"
        )
        rng = np.random.default_rng(0)
        images = rng.uniform(-1, 1, (1, 64, 64, 3)).astype("float32")
        maps = MAPS[:1, :, :].repeat(2, axis=1)
        for scale in (1, 2):
            kernel = critic.get_layer(f"scale_{scale}_conv_3").kernel
            kernel.assign(kernel * factor)
        outputs = critic([images, maps])
        return np.concatenate([to_numpy(x[-1]).ravel() for x in outputs])

    @pytest.mark.parametrize("original", [False, True])
    def test_instance_normalization_cancels_any_factor(self, original):
        """The size of a kernel matters only without the normalization."""
        before, after = (
            self.outputs_of_scaled_kernels(original, factor)
            for factor in (10.0, 100.0)
        )
        change = np.abs(after - before).max() / np.abs(before).max()
        if original:
            assert change < 1e-4
        else:
            assert change > 5.0

    @pytest.mark.parametrize("original", [False, True])
    def test_which_layers_are_normalized(self, original):
        critic = make_critic(original=original, normalizer="sn")
        for scale in (1, 2):
            found = [
                critic.get_layer(f"scale_{scale}_conv_{i}").normalizer
                for i in range(1, 6)
            ]
            assert [x is not None for x in found] == (
                [False, True, True, True, False] if original else [True] * 5
            )

    def test_norms_are_exact(self):
        """Each norm is that at its own image size; divided, it is one."""
        critic = make_critic((64, 64))
        critic([np.zeros((1, 64, 64, 3)), np.zeros((1, 64, 64, CLASSES))])
        for scale, size in ((1, 64), (2, 32)):
            for i in range(1, 6):
                layer = critic.get_layer(f"scale_{scale}_conv_{i}")
                (normalization,) = layer.normalizations
                height = size // 2 ** min(i - 1, 3)
                moduli = np.abs(
                    np.fft.fft2(
                        to_numpy(layer.kernel), (height, height), axes=(0, 1)
                    )
                )
                np.testing.assert_allclose(
                    to_numpy(normalization.current()), moduli.max(), rtol=1e-5
                )

    def test_of_the_authors_filters(self):
        critic = make_critic(
            normalizer=normalizers.SparsityAware(ratio=0.25, gain=1.3)
        )
        assert critic.get_layer("scale_2_conv_4").normalizer.gain == 1.3

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"resolution": (64, 32)},
                r"64 x 64 with 2 scales.*resolution=\(64, 32\)",
            ),
            ({"scales": 0}, "scales=0"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            make_critic(**settings)


def test_everything_learns():
    gan = PairedGAN(
        make_generator((64, 64)),
        make_critic((64, 64)),
        feature_matching=1.0,
        joint=True,
        ema=0.5,
    )
    gan.compile(run_eagerly=BACKEND == "tensorflow")
    data = [x[:2].repeat(2, axis=1) for x in (MAPS, IMAGES)]
    before = [to_numpy(w) for w in gan.trainable_variables]
    history = gan.fit(*data, batch_size=2, shuffle=False, verbose=0).history
    assert all(np.isfinite(v).all() for v in history.values())
    for old, new in zip(before, gan.trainable_variables):
        # Of small logits the hinge loss has no slope towards a last bias.
        if "conv_5/bias" not in new.path:
            assert np.any(to_numpy(new) != old), new.path


def test_a_stripped_generator_is_plain(tmp_path):
    """A file that loads where keras_san is not installed."""
    model = make_generator()
    plain = keras_san.strip(model)
    assert "keras_san" not in plain.to_json()
    plain.save(tmp_path / "generator.keras")
    again = keras.saving.load_model(tmp_path / "generator.keras")
    np.testing.assert_allclose(
        to_numpy(again(MAPS)), to_numpy(model(MAPS)), atol=1e-6
    )
