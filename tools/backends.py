"""Differences between TensorFlow, JAX and PyTorch in measurements."""

import os
import platform

import keras
from keras import ops

from keras_san.differentiation import value_and_gradients


class Backend:
    """One of TensorFlow, JAX and PyTorch, to measure on."""

    def __init__(self, name, device):
        if keras.backend.backend() != name:
            raise ValueError(
                f"Keras already runs on {keras.backend.backend()} in this "
                f"process. Received: backend={name!r}"
            )
        self.name = name
        self.gpu = device == "gpu"
        self.module = __import__(name)
        if name == "tensorflow":  # It warns of many functions, as here.
            self.module.get_logger().setLevel("ERROR")
        # On CPUs XLA makes TensorFlow's convolutions slower.
        self.jit = name == "jax" or (self.gpu and name == "tensorflow")
        if self.gpu and not self._gpus():
            raise ValueError(f"{name} finds no GPU. Received: device='gpu'")

    def _gpus(self):
        if self.name == "tensorflow":
            return self.module.config.list_physical_devices("GPU")
        if self.name == "jax":
            return [d for d in self.module.devices() if d.platform == "gpu"]
        return self.module.cuda.is_available()

    def describe(self):
        device = f"{os.cpu_count()} CPU cores ({platform.machine()})"
        if self.gpu:
            device = str(self._gpus())
            if self.name == "torch":
                device = self.module.cuda.get_device_name()
            elif self.name == "jax":
                device = self._gpus()[0].device_kind
        return (
            f"{self.name} {self.module.__version__}, Keras "
            f"{keras.__version__}, {device}"
        )

    def tensor(self, x):
        return ops.convert_to_tensor(x)

    def numpy(self, x):
        return ops.convert_to_numpy(x)

    def compile(self, function):
        if self.name == "tensorflow":
            return self.module.function(
                function, jit_compile=self.jit, autograph=False
            )
        if self.name == "jax":
            return self.module.jit(function)

        def without_gradients(*args):
            with self.module.no_grad():
                return function(*args)

        return without_gradients

    def wait(self, result):
        if self.name == "jax":
            self.module.block_until_ready(result)
        elif self.name == "torch":
            if self.gpu:
                self.module.cuda.synchronize()
        elif self.gpu:
            self.module.test.experimental.sync_devices()

    def transforms(self, image):
        """The paper's way: all filters padded to the image, and their FFT."""
        height, width = image

        def padded(x):
            x = ops.transpose(x, (2, 3, 0, 1))
            rows, columns = height - x.shape[2], width - x.shape[3]
            return ops.pad(x, ((0, 0), (0, 0), (0, rows), (0, columns)))

        if self.name == "tensorflow":
            tf = self.module

            def fft2(x):
                x = tf.cast(padded(x), "complex64")
                return tf.reduce_max(tf.abs(tf.signal.fft2d(x)))

            def rfft2(x):
                return tf.reduce_max(tf.abs(tf.signal.rfft2d(padded(x))))
        else:
            if self.name == "jax":
                numpy = self.module.numpy
            else:
                numpy = self.module

            def fft2(x):
                return numpy.max(numpy.abs(numpy.fft.fft2(padded(x))))

            def rfft2(x):
                return numpy.max(numpy.abs(numpy.fft.rfft2(padded(x))))

        return {"fft2": fft2, "rfft2": rfft2}

    def gradient_step(self, layer):
        """Compiled gradients of a layer's output, to inputs and kernel."""
        kernel = layer.kernel
        others = [v for v in layer.variables if v is not kernel]

        def total(values):
            mapping = [(v, v.value) for v in others]
            with keras.StatelessScope([*mapping, (kernel, values[1])]):
                return ops.sum(ops.square(layer(values[0])))

        # The kernel is an argument, lest XLA take it for a constant.
        step = self.compile(lambda *x: value_and_gradients(total, list(x))[1])
        return lambda x: step(x, kernel.value)

    def extra_memory(self, function, arguments):
        """Peak MiB that a call takes beyond what is in use; `None` if unknown.

        On JAX the temporary memory of the compiled program.
        """
        if self.name == "jax":
            if not hasattr(function, "lower"):
                return None
            compiled = function.lower(*arguments).compile()
            return compiled.memory_analysis().temp_size_in_bytes / 2**20
        if self.name == "tensorflow":
            device = "GPU:0" if self.gpu else "CPU:0"
            before, peak = tensorflow_memory(
                lambda: self.wait(function(*arguments)), device
            )
        elif self.gpu:
            self.module.cuda.reset_peak_memory_stats()
            before = self.module.cuda.memory_allocated()
            self.wait(function(*arguments))
            peak = self.module.cuda.max_memory_allocated()
        else:
            return None
        return None if peak is None else (peak - before) / 2**20


def tensorflow_memory(call, device):
    """Memory that TensorFlow holds for tensors before and in a call.

    Args:
        call: Callable without arguments.
        device: String, as `"CPU:0"`.

    Returns:
        Bytes in use before the call, and at its peak. Both are `None` where
        TensorFlow keeps no such statistics: on CPUs it does so in oneDNN's
        allocator only, which older ones do not get unless they are asked to
        (`TF_ENABLE_ONEDNN_OPTS=1`).
    """
    import tensorflow as tf

    config = tf.config.experimental
    try:
        config.reset_memory_stats(device)
    except ValueError:
        call()
        return None, None
    before = config.get_memory_info(device)["current"]
    call()
    return before, config.get_memory_info(device)["peak"]
