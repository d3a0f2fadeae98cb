import numpy as np
import pytest
from helpers import to_numpy

from keras_san.networks import sngan


def trainable_parameters(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize(
    ("resolution", "generator", "critic"),
    [(32, 3_815_299, 2_935_873), (48, 5_136_259, 2_946_113)],
)
def test_parameter_counts(resolution, generator, critic):
    """Counted by hand from Table 3 of Miyato et al."""
    start = resolution // 8
    dense = (128 + 1) * start**2 * 512
    deconvolutions = sum(
        16 * a * b + b for a, b in ((512, 256), (256, 128), (128, 64))
    )
    batch_norms = 4 * (512 + 256 + 128 + 64)  # Two of the four are trained.
    assert dense + deconvolutions + batch_norms + 9 * 64 * 3 + 3 == generator
    assert sngan.generator(resolution).count_params() == generator
    shapes = [
        (9, 3, 64),
        (16, 64, 64),
        (9, 64, 128),
        (16, 128, 128),
        (9, 128, 256),
        (16, 256, 256),
        (9, 256, 512),
    ]
    expected = sum(k * a * b + b for k, a, b in shapes) + start**2 * 512 + 1
    assert expected == critic
    assert trainable_parameters(sngan.critic(resolution)) == critic


@pytest.mark.parametrize("normalizer", ["san", "sn", "bssn", "conv_sn", None])
def test_shapes_and_ranges(normalizer):
    generator = sngan.generator(16, 1, latent_dim=4, width=0.05)
    critic = sngan.critic(16, 1, width=0.05, normalizer=normalizer)
    latents = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    images = to_numpy(generator(latents))
    assert images.shape == (3, 16, 16, 1)
    assert np.abs(images).max() <= 1.0
    assert critic(images).shape == (3, 1)
    assert critic.layers[0].normalizer is None or normalizer


@pytest.mark.parametrize("resolution", [0, 4, 30])
@pytest.mark.parametrize("network", [sngan.generator, sngan.critic])
def test_bad_resolution(network, resolution):
    with pytest.raises(ValueError, match=f"Received: resolution={resolution}"):
        network(resolution)
