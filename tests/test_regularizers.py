import helpers
import keras
import numpy as np
import pytest
from helpers import to_numpy
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_san import regularizers

property_test = helpers.property_test(tensorflow=20, jax=5, torch=20)

RNG = np.random.default_rng(0)


class TestClip:
    def test_clips(self):
        kernel = RNG.normal(size=(3, 3, 2, 4)).astype("float32")
        clipped = to_numpy(
            regularizers.Clip(0.5)(ops.convert_to_tensor(kernel))
        )
        np.testing.assert_array_equal(clipped, np.clip(kernel, -0.5, 0.5))
        assert (np.abs(clipped) == 0.5).any() and (clipped < 0).any()

    def test_holds_in_training(self):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(
                    2,
                    kernel_initializer="ones",  # Far enough from the limit.
                    kernel_constraint=regularizers.Clip(),
                ),
            ]
        )
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        np.testing.assert_allclose(
            np.abs(to_numpy(model.layers[0].kernel)), 0.01, rtol=1e-6
        )

    @pytest.mark.parametrize("limit", [0])
    def test_bad_limit(self, limit):
        with pytest.raises(ValueError, match="Received: limit="):
            regularizers.Clip(limit)


class TestUnitFilters:
    @pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 4)])
    def test_value(self, shape):
        kernel = RNG.normal(size=shape).astype("float32")
        kernel[..., 0] = 0.0
        found = to_numpy(
            regularizers.UnitFilters()(ops.convert_to_tensor(kernel))
        )
        norms = np.linalg.norm(kernel.reshape(-1, shape[-1]), axis=0)
        expected = kernel / np.where(norms > 0, norms, 1.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


class TestOrthonormal:
    @property_test
    @given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
    def test_value(self, fan_in, outputs, seed):
        kernel = np.random.default_rng(seed).normal(size=(2, fan_in, outputs))
        matrix = kernel.reshape(-1, outputs)
        singular = np.linalg.svd(matrix, compute_uv=False)
        # Gram matrices of either side share their eigenvalues; those that
        # must be zero are left out by taking the smaller one.
        expected = 0.3 * np.sum((singular**2 - 1.0) ** 2)
        penalty = regularizers.Orthonormal(0.3)(
            ops.convert_to_tensor(kernel, "float32")
        )
        np.testing.assert_allclose(to_numpy(penalty), expected, rtol=1e-4)

    @pytest.mark.parametrize("shape", [(3, 3, 2, 5), (1, 1, 2, 8)])
    def test_is_zero_where_it_should_be(self, shape):
        kernel = keras.initializers.Orthogonal(seed=0)(shape)
        penalty = regularizers.Orthonormal(1.0)(kernel)
        np.testing.assert_allclose(to_numpy(penalty), 0.0, atol=1e-9)

    @pytest.mark.parametrize("factor", [0])
    def test_bad_factor(self, factor):
        with pytest.raises(ValueError, match="Received: factor="):
            regularizers.Orthonormal(factor)


@pytest.mark.parametrize(
    "made",
    [
        regularizers.Clip(0.2),
        regularizers.Orthonormal(0.3),
        regularizers.UnitFilters(),
    ],
)
def test_serialization(made, tmp_path):
    is_regularizer = isinstance(made, keras.regularizers.Regularizer)
    which = "kernel_regularizer" if is_regularizer else "kernel_constraint"
    layer = keras.layers.Dense(2, **{which: made})
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    found = getattr(loaded.layers[0], which)
    assert type(found) is type(made)
    assert found.get_config() == made.get_config()
