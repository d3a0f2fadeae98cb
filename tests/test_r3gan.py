import keras
import numpy as np
import pytest
import scipy.signal
from helpers import BACKEND, images_of, to_numpy, trainable_parameters

from keras_san import GAN, normalizers
from keras_san.networks import r3gan
from keras_san.penalties import R1, R2

SMALL = {"resolution": 16, "widths": 8, "groups": 4, "blocks": 1}


@pytest.mark.parametrize(
    ("num_classes", "expected"),
    [(None, (20_732_160, 20_683_776)), (10, (20_781_952, 21_280_512))],
)
def test_parameters(num_classes, expected):
    networks = r3gan.generator, r3gan.critic
    found = [make(num_classes=num_classes) for make in networks]
    assert tuple(map(trainable_parameters, found)) == expected


def test_initialization():
    """A block begins as the identity, whatever the depth."""
    keras.utils.set_random_seed(0)
    for network in (r3gan.generator(width=0.25), r3gan.critic(width=0.25)):
        gain = np.sqrt(2.0 / 1.04) * 8**-0.25
        for name, fan_in in (("conv_1", 192), ("conv_2", 9 * 16)):
            kernel = network.get_layer(f"stage_1_block_1_{name}").kernel
            assert to_numpy(kernel).std() == pytest.approx(
                gain / np.sqrt(fan_in), rel=0.02
            )
        last = network.get_layer("stage_4_block_2_conv_3")
        assert not np.any(to_numpy(last.kernel)) and not last.use_bias


def test_between_the_stages():
    """Images double and halve by a filter of 1, 3, 3, 1 along each axis."""
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    keras.utils.set_random_seed(0)
    for make, first in ((r3gan.generator, 4), (r3gan.critic, 8)):
        network = make(**{**SMALL, "resolution": 8})
        layers = [x for x in network.layers if x.name.endswith("conv_3")]
        x = images_of(2, first, first, 8)
        zero_padding = next(
            x for x in network.layers if "zero_padding" in x.name
        )
        after = next(
            x for x in network.layers if x.name == "stage_2_block_1_conv_1"
        )
        part = keras.Model(zero_padding.input, after.input)
        found = to_numpy(part(x))
        for image, made in zip(x, found):
            for channel in range(8):
                one = image[..., channel].astype("float64")
                if first == 4:
                    wide = np.zeros((8, 8))
                    wide[::2, ::2] = 4 * one
                    wide = np.pad(wide, ((2, 1), (2, 1)))
                    expected = scipy.signal.convolve2d(wide, taps, "valid")
                else:
                    wide = np.pad(one, 1)
                    expected = scipy.signal.convolve2d(wide, taps, "valid")
                    expected = expected[::2, ::2]
                np.testing.assert_allclose(
                    made[..., channel], expected, atol=1e-5
                )
        assert len(layers) == 2


@pytest.mark.parametrize(
    ("normalizer", "num_classes"), [(None, 3), ("san", None)]
)
def test_trains(normalizer, num_classes, tmp_path):
    keras.utils.set_random_seed(0)
    padding = "same" if normalizer is None else "circular"
    gan = GAN(
        r3gan.generator(**SMALL, latent_dim=8, num_classes=num_classes),
        r3gan.critic(
            **SMALL,
            num_classes=num_classes,
            normalizer=normalizer,
            padding=padding,
        ),
        latent_dim=8,
        loss="relativistic",
        penalty=[R1(0.05), R2(0.05)],
        joint=True,
        num_classes=num_classes,
    )
    gan.compile(run_eagerly=BACKEND == "tensorflow")
    labels = [] if num_classes is None else [np.arange(8) % 3]
    history = gan.fit(images_of(8, 16, 16, 3), *labels, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for layer in gan.critic.layers:
        found = getattr(layer, "normalizer", None)
        assert isinstance(found, normalizers.SparsityAware) == (
            normalizer == "san" and bool(layer.weights)
        )
    # The generator needs nothing of this package.
    config = str(gan.generator.get_config())
    assert "keras_san" not in config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 24}, "power of 2.*resolution=24"),
        ({"resolution": 2}, "resolution=2"),
        ({"widths": [8, 8]}, r"3 stages.*widths=\[8, 8\]"),
        ({"width": 0}, "width=0"),
    ],
)
def test_bad_settings(settings, message):
    for make in (r3gan.generator, r3gan.critic):
        with pytest.raises(ValueError, match=message):
            make(**{**SMALL, **settings})
