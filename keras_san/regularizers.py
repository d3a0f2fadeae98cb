"""Constraints and regularizers of other GANs, as baselines.

Each is a Keras constraint or regularizer, for the argument
`kernel_constraint` or `kernel_regularizer` of any layer.
"""

import keras
from keras import ops

from keras_san.checks import check_positive


@keras.saving.register_keras_serializable("keras_san")
class Clip(keras.constraints.Constraint):
    """Clips each weight after each update, as the first WGAN does.

    Args:
        limit: Positive float, the largest modulus of a weight.

    Raises:
        ValueError: if `limit` is not positive.

    Reference:
        [Arjovsky et al., 2017](https://arxiv.org/abs/1701.07875), Algorithm 1.
    """

    def __init__(self, limit=0.01):
        check_positive("limit", limit)
        self.limit = limit

    def __call__(self, value):
        return ops.clip(value, -self.limit, self.limit)

    def get_config(self):
        return {"limit": self.limit}


@keras.saving.register_keras_serializable("keras_san")
class UnitFilters(keras.constraints.Constraint):
    """Scales the weights of each output to unit norm after each update.

    This is weight normalization without its learned length, with which
    SN-GAN's authors compare, in a projected form: the kernel itself is kept
    normalized, rather than divided in the forward pass. (Keras' `UnitNorm`
    would need other axes for each rank of kernel.)

    Reference:
        [Salimans and Kingma, 2016](https://arxiv.org/abs/1602.07868), Eq. 2.
    """

    def __call__(self, value):
        axes = tuple(range(len(value.shape) - 1))
        squares = ops.sum(ops.square(value), axis=axes, keepdims=True)
        return value / ops.sqrt(ops.maximum(squares, 1e-14))


@keras.saving.register_keras_serializable("keras_san")
class Orthonormal(keras.regularizers.Regularizer):
    """Pulls a kernel, as a `(fan_in, outputs)` matrix W, to orthonormality.

    Adds `factor * |W^T W - 1|^2`, the sum of the squares of all entries. For
    a matrix with fewer rows than columns, `W W^T` takes the place of `W^T W`.

    Args:
        factor: Positive float. The papers do not give theirs.

    Raises:
        ValueError: if `factor` is not positive.

    Reference:
        [Brock et al., 2016](https://arxiv.org/abs/1609.07093), section 3.3,
        in the squared form of
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), section 3.
    """

    def __init__(self, factor=1e-4):
        check_positive("factor", factor)
        self.factor = factor

    def __call__(self, x):
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        rows, columns = matrix.shape
        if rows < columns:
            matrix, columns = ops.transpose(matrix), rows
        gram = ops.matmul(ops.transpose(matrix), matrix)
        identity = ops.eye(columns, dtype=gram.dtype)
        return self.factor * ops.sum(ops.square(gram - identity))

    def get_config(self):
        return {"factor": self.factor}
