"""Checks of the networks of a GAN, and of what they are given."""

import keras

from keras_san.checks import after, check_keras_3, require


def check_network(name, network):
    """Raises a `ValueError` unless a network is built and has known inputs."""
    check_keras_3(network)
    if not isinstance(network, keras.Model) or not network.built:
        raise ValueError(
            f"`{name}` must be a built `keras.Model`, as a functional model "
            "is, or a Sequential one with a `keras.Input`. "
            f"Received: {name}={network}"
        )
    if not getattr(network, "inputs", None):
        raise ValueError(
            f"`{name}` must be a functional or Sequential model. Make one of "
            "a subclassed model by calling it: `keras.Model(inputs, "
            "model(inputs))`, with `inputs = keras.Input(shape)`. "
            f"Received: {name}={network} of type {type(network).__name__}"
        )


def copy_for_average(generator):
    """A frozen copy of a generator, whose weights have paths of their own."""

    def copy(layer):
        config = {**layer.get_config(), "name": f"averaged_{layer.name}"}
        if isinstance(layer, keras.layers.Lambda):
            # The model is the user's own; nothing is read from a file.
            return type(layer).from_config(config, safe_mode=False)
        return type(layer).from_config(config)

    average = keras.models.clone_model(
        generator, clone_function=copy, recursive=True
    )
    average.trainable = False
    average.set_weights(generator.get_weights())
    return average


def check_takes_images_of(generator, critic):
    """Raises a `ValueError` unless a critic takes what a generator makes."""
    made, taken = generator.output_shape, tuple(critic.inputs[0].shape)
    if not _agree(made, taken):
        raise ValueError(
            "The critic must take the images that the generator makes. "
            f"Received: a generator with output_shape={made}, a critic with "
            f"input_shape={critic.input_shape}"
        )


def check_fit(name, value, expected):
    """Raises a `ValueError` unless a network takes an array.

    Args:
        name: String, what the array is.
        value: Array or tensor `(batch, ...)`.
        expected: An input of the network, a `keras.KerasTensor`.
    """
    shape, expected = tuple(value.shape), tuple(expected.shape)
    if not _agree(shape, expected):
        raise ValueError(
            f"The {name} do not fit the network, which takes {expected}. "
            f"Received: {name} of shape {shape}"
        )


def with_shape(name, value, expected):
    """A tensor, of which more may be known than before.

    Args:
        name: String, what it is.
        value: Tensor.
        expected: The shape that it must have.

    Raises:
        ValueError: if it has another one.
    """
    shape = tuple(value.shape)
    message = f"The {name} must have the shape {tuple(expected)}."
    if not _agree(shape, expected):
        raise ValueError(f"{message} Received: {name} of shape {shape}")
    if None in shape[1:]:  # In a graph of TensorFlow.
        import tensorflow as tf

        found = tf.shape(value)[1:]
        fits = tf.reduce_all(tf.equal(found, expected[1:]))
        received = f"{message} Received: {name} of shape"
        value = after(require(fits, received, found), value)
        value = tf.ensure_shape(value, expected)
    return value


def _agree(shape, expected):
    return len(shape) == len(expected) and all(
        None in (a, b) or a == b for a, b in zip(shape[1:], expected[1:])
    )


def is_float(values):
    """Tells whether an array or tensor holds floats."""
    return keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(values.dtype)
    )
