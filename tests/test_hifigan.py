"""HiFi-GAN's critics of waveforms."""

import keras
import numpy as np
import pytest
import scipy.signal
from helpers import ignore_torch_copies, images_of, to_numpy
from helpers import trainable_parameters as parameters
from keras import ops

import keras_san
from keras_san.critic_output import of_scales
from keras_san.diagnostics import diagnose
from keras_san.differentiation import minimize
from keras_san.networks import hifigan

pytestmark = ignore_torch_copies

SMALL = {"samples": 101, "width": 1 / 64}
MAKERS = {
    "period": lambda **k: hifigan.multi_period_critic(
        **{**SMALL, "periods": (2, 3), **k}
    ),
    "scale": lambda **k: hifigan.multi_scale_critic(
        **{**SMALL, "scales": 2, **k}
    ),
}


def test_parameters():
    """As counted from the layers, of which each output has a length."""

    def count(settings, lengths=True):
        return sum(
            taps * inputs * outputs + (2 if lengths else 1) * outputs
            for taps, inputs, outputs in settings
        )

    periodic = [(5, 1, 32), (5, 32, 128), (5, 128, 512), (5, 512, 1024)]
    periodic += [(5, 1024, 1024), (3, 1024, 1)]
    expected = 5 * count(periodic)
    assert expected == 41_105_770
    critic = hifigan.multi_period_critic
    assert parameters(critic()) == expected
    assert f"{expected:,}" in critic.__doc__

    scaled = [(15, 1, 128), (41, 32, 128), (41, 8, 256), (41, 16, 512)]
    scaled += [(41, 32, 1024), (41, 64, 1024), (5, 1024, 1024), (3, 1024, 1)]
    expected = 2 * count(scaled) + count(scaled, lengths=False)
    assert expected == 29_618_821
    critic = hifigan.multi_scale_critic
    # Without power iterations of kernels as large.
    found = parameters(critic(normalizer=[None, "weight", "weight"]))
    assert found == expected
    assert f"{expected:,}" in critic.__doc__


@pytest.mark.parametrize("period", [2, 3, 7])
def test_folding(period):
    """The end is reflected, whether the length is known or not."""
    for samples in (None, 14, 15, 20):
        inputs = keras.Input((samples, 1))
        fold = keras.Model(inputs, hifigan._fold(inputs, period))
        for length in [samples] if samples else range(14, 22):
            x = images_of(2, length, 1)
            wide = np.pad(x, ((0, 0), (0, -length % period), (0, 0)), "reflect")
            np.testing.assert_array_equal(
                to_numpy(fold(x)), wide.reshape(2, -1, period, 1)
            )


def convolution(x, layer, stride):
    """A layer of `(samples, channels)`, with half of its kernel as padding."""
    conv = getattr(layer, "layer", layer)
    kernel, bias = to_numpy(conv.kernel), to_numpy(conv.bias)
    if kernel.ndim == 4:
        kernel = kernel[:, 0]
    width, fan_in, filters = kernel.shape
    x = np.pad(x, ((width // 2, width // 2), (0, 0)))
    groups = x.shape[1] // fan_in
    outputs = []
    for i in range(filters):
        first = i // (filters // groups) * fan_in
        outputs.append(
            sum(
                scipy.signal.correlate(
                    x[:, first + j], kernel[:, j, i], "valid"
                )
                for j in range(fan_in)
            )
        )
    return (np.stack(outputs, axis=-1) + bias)[::stride]


def expected_outputs(critic, name, x, settings):
    outputs = []
    for index, stride in enumerate(settings):
        last = index == len(settings) - 1
        part = "logits" if last else f"conv_{index + 1}"
        x = convolution(x, critic.get_layer(f"{name}_{part}"), stride)
        if not last:
            x = np.where(x > 0, x, 0.1 * x)
        outputs.append(x)
    return outputs


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            to_numpy(a)[0], b, atol=1e-4 * np.abs(b).max()
        )


def test_periods():
    """Each column of a folded waveform is convolved by itself."""
    critic = MAKERS["period"](normalizer=None)
    x = images_of(1, 101, 1)
    for outputs, period in zip(critic(x), (2, 3), strict=True):
        wide = np.pad(x[0, :, 0], (0, -101 % period), "reflect")
        columns = [
            expected_outputs(
                critic, f"period_{period}", column[:, None], [3] * 4 + [1, 1]
            )
            for column in wide.reshape(-1, period).T
        ]
        assert_close(outputs, [np.stack(c, axis=1) for c in zip(*columns)])


def test_scales():
    """Each scale sees means over four samples, zeros outside included."""
    critic = MAKERS["scale"](normalizer=None)
    x = images_of(1, 101, 1)
    signal = x[0, :, 0]
    for outputs, scale in zip(critic(x), (1, 2), strict=True):
        if scale == 2:
            wide = np.pad(signal, 2)
            signal = np.convolve(wide, np.ones(4) / 4, "valid")[::2]
        assert_close(
            outputs,
            expected_outputs(
                critic,
                f"scale_{scale}",
                signal[:, None],
                [1, 2, 2, 4, 4, 1, 1, 1],
            ),
        )


@pytest.mark.parametrize("kind", MAKERS)
def test_any_length(kind):
    keras.utils.set_random_seed(0)
    fixed, free = (MAKERS[kind](samples=n) for n in (101, None))
    free.set_weights(fixed.get_weights())
    x = images_of(2, 101, 1)
    found, expected = (keras.tree.flatten(c(x)) for c in (free, fixed))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-5)
    free(images_of(1, 77, 1))


@pytest.mark.parametrize("normalizer", ["weight", "sn", "san"])
@pytest.mark.parametrize("kind", MAKERS)
def test_trains(kind, normalizer):
    """An update by least squares, as in the paper, moves every weight."""
    keras.utils.set_random_seed(0)
    # One channel, without groups, which TensorFlow compiles at each call.
    critic = MAKERS[kind](normalizer=normalizer, width=1 / 1024)
    real, fake = images_of(2, 101, 1), 0.5 * images_of(2, 101, 1, seed=1)

    def compute_loss():
        loss = 0.0
        for x, target, held in ((real, 1.0, False), (fake, 0.0, True)):
            x = ops.convert_to_tensor(x)
            if held:
                with keras_san.hold_norms():
                    outputs = critic(x, training=True)
            else:
                outputs = critic(x, training=True)
            for logits in of_scales(outputs).logits:
                loss += ops.mean(ops.square(logits - target))
        return loss, {"loss": loss}

    optimizer = keras.optimizers.AdamW(2e-4, beta_1=0.8, beta_2=0.99)
    variables = critic.trainable_variables
    optimizer.build(variables)
    before = [to_numpy(v) for v in variables]
    losses = []
    for _ in range(2):
        logs = minimize(compute_loss, optimizer, variables, critic.variables)
        losses.append(float(to_numpy(ops.stop_gradient(logs["loss"]))))
    assert losses[1] < losses[0]
    for old, variable in zip(before, variables):
        assert np.any(to_numpy(variable) != old), variable.path
    lengths = [v.path for v in variables if v.path.endswith("lengths")]
    convolutions = [x for x in critic.layers if hasattr(x, "normalizer")]
    assert len(lengths) == len(convolutions) * (normalizer == "weight")


def test_files_and_plain_layers(tmp_path):
    critic = MAKERS["period"]()
    x = images_of(2, 101, 1)
    expected = keras.tree.flatten(critic(x))
    critic.save(tmp_path / "critic.keras")
    plain = keras_san.strip(critic)
    assert "keras_san" not in plain.to_json()
    loaded = keras.saving.load_model(tmp_path / "critic.keras")
    for model in (loaded, plain):
        found = keras.tree.flatten(model(x))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


def test_diagnosis():
    critic = MAKERS["scale"](width=1 / 1024)
    found = diagnose(critic, images_of(2, 101, 1))
    assert len(found.norms) == len(found.gains) == 16


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("period", {"samples": 2}, r"samples=2 with periods=\(2, 3\)"),
        ("period", {"periods": (2, 1)}, "periods=1"),
        ("scale", {"scales": 0}, "scales=0"),
        ("scale", {"normalizer": ["sn"]}, "1 with scales=2"),
        ("scale", {"width": 0}, "width=0"),
    ],
)
def test_bad_settings(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[kind](**settings)
