"""Two replicas train as one device does on the same global batch.

Each script runs in a process of its own: the number of logical devices can
only be set before TensorFlow starts, and a process in which a distributed run
has failed cannot run another.
"""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import BACKEND

needs_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's"
)

START = """
import contextlib, os, sys
import numpy as np
import keras
from keras import layers
import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper, normalizers

results = {}

def images(n):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (n, 6, 6, 2)).astype("float32")
"""

MIRRORED = """
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert mirrored.num_replicas_in_sync == 2

def scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()

def batches(*arrays):
    data = tf.data.Dataset.from_tensor_slices(arrays)
    data = data.batch(8, drop_remainder=True)
    return data.map(lambda x: x) if len(arrays) == 1 else data

def normalizations_of(model):
    return [
        normalization
        for layer in model._flatten_layers()
        for normalization in getattr(layer, "normalizations", [])
    ]

def keep(name, strategy, model, history):
    for key, values in history.history.items():
        results[f"{name}/history/{key}"] = values
    for i, weight in enumerate(model.weights):
        results[f"{name}/weight/{i:02}"] = weight.numpy()
    if strategy:
        # Whatever should be the same everywhere, as each replica has it.
        variables = [v for n in normalizations_of(model) for v in n.variables]
        variables += model.weights
        for i, variable in enumerate(variables):
            copies = strategy.experimental_local_results(variable.value)
            assert len(copies) == 2, variable.path
            results[f"{name}/replicas/{variable.path}/{i}"] = np.stack(
                [copy.numpy() for copy in copies]
            )
"""

CRITIC = """
def critic(form):
    sample = normalizers.SparsityAware(form=form)
    if form == "divide":
        sample = normalizers.SparsityAware(ratio=0.5, update_interval=3)
    spectral = normalizers.Spectral(form=form)
    return keras.Sequential([
        keras.Input((6, 6, 2)),
        SANConv2D(4, 3, normalizer=normalizers.SparsityAware(form=form)),
        layers.LeakyReLU(0.1),
        SANConv2D(4, 4, 2, normalizer=sample),
        layers.LeakyReLU(0.1),
        SANWrapper(layers.DepthwiseConv2D(3), spectral, padding="circular"),
        layers.Flatten(),
        SANDense(1, normalizer=spectral),
    ])

# 36 images: four batches, and a remainder to drop.
inputs = images(36)
targets = np.sign(inputs.mean((1, 2, 3)))[:, None]

for form in ("divide", "project"):
    name = f"critic_{form}"
    for device, strategy in (("one", None), ("two", mirrored)):
        keras.utils.set_random_seed(0)
        with scope(strategy):
            model = critic(form)
            model.compile(
                keras.optimizers.Adam(0.01),
                "hinge",
                metrics=["mae"],
                # What is compared with needs no graph.
                run_eagerly=strategy is None,
            )
        # What a kernel has become, its first measurement finds.
        for normalization in normalizations_of(model):
            kernel = normalization.get_kernel()
            if normalization.divides:
                kernel.assign(kernel.numpy() * 1.5)
        history = model.fit(
            batches(inputs, targets), epochs=3, verbose=0, shuffle=False
        )
        keep(f"{name}/{device}", strategy, model, history)

# Replicas that compute different norms, as they may on unlike devices: here
# because one has another kernel. All go on with what the first has measured.
with mirrored.scope():
    layer = SANConv2D(2, 3, normalizer="sn")
    layer.build((None, 6, 6, 2))
kernel = layer.kernel.numpy()
copies = mirrored.experimental_local_results(layer.kernel.value)
copies[1].assign(np.random.default_rng(0).normal(size=kernel.shape))

@tf.function
def step():
    # As in `fit`: what is assigned in a replica has to be merged.
    mirrored.run(lambda: layer(images(2), training=True))

for _ in range(3):
    step()
for variable in layer.normalizations[0].variables:
    copies = mirrored.experimental_local_results(variable.value)
    results[f"drift/{variable.name}"] = np.stack([c.numpy() for c in copies])
results["drift_expected"] = np.linalg.norm(kernel.reshape(-1, 2), 2)
"""

NETWORKS = """
def make_gan(form, num_classes=None, **settings):
    make = lambda: normalizers.SparsityAware(form=form)
    labels = [keras.Input((), dtype="int32")] if num_classes else []
    latents = keras.Input((5,))
    # Without batch normalization: its statistics are those of a replica.
    x = layers.Dense(3 * 3 * 4, activation="relu")(latents)
    if labels:
        x = layers.Add()([x, layers.Embedding(num_classes, 36)(labels[0])])
    x = layers.Reshape((3, 3, 4))(x)
    x = layers.Conv2DTranspose(2, 4, 2, "same", activation="tanh")(x)
    generator = keras.Model([latents, *labels] if labels else latents, x)
    inputs = keras.Input((6, 6, 2))
    y = SANConv2D(4, 3, normalizer=make())(inputs)
    y = layers.LeakyReLU(0.1)(y)
    y = SANConv2D(4, 4, 2, normalizer=make(), kernel_regularizer="l2")(y)
    y = layers.Flatten()(y)
    if labels:
        y = layers.Concatenate()(
            [y, layers.Embedding(num_classes, 4)(labels[0])]
        )
    y = SANDense(1, normalizer=normalizers.Spectral(form=form))(y)
    critic = keras.Model([inputs, *labels] if labels else inputs, y)
    settings["num_classes"] = num_classes
    gan = keras_san.GAN(generator, critic, latent_dim=5, seed=3, **settings)
    if gan.augmentation is not None:
        gan._strength[0].assign(0.5)
    # Not Adam: where a gradient is zero but for rounding, it would take whole
    # steps in directions that differ from run to run.
    gan.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05))
    return gan

def make_paired():
    inputs = keras.Input((3, 3, 2))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    generator = keras.Model(inputs, layers.Conv2DTranspose(2, 2, 2)(x))
    # It looks at windows, which all replicas have to take at one place.
    critic = keras.Sequential([
        keras.Input((4, 4, 2)), SANConv2D(4, 3), layers.LeakyReLU(0.1),
        layers.Flatten(), SANDense(1),
    ])
    gan = keras_san.PairedGAN(
        generator, critic, [keras_san.losses.PixelLoss()], seed=3
    )
    gan.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05))
    return gan

def make_conditional():
    # Batches of both replicas are normalized together, as in SPADE.
    maps = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same")(maps)
    x = layers.BatchNormalization(synchronized=True)(x)
    x = layers.Conv2D(2, 3, padding="same", activation="tanh")(x)
    generator = keras.Model(maps, x)
    inputs = keras.Input((6, 6, 2))
    y = layers.Concatenate()([maps, inputs])
    outputs = []
    for _ in range(2):
        feature = SANConv2D(4, 3)(y)
        outputs.append([feature, SANConv2D(1, 3)(layers.ReLU()(feature))])
        y = layers.AveragePooling2D(2)(y)
    gan = keras_san.PairedGAN(
        generator,
        keras.Model([inputs, maps], outputs),
        feature_matching=2.0,
        joint=True,
        seed=3,
    )
    gan.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05))
    return gan

def make_attributes():
    inputs, attributes = keras.Input((6, 6, 2)), keras.Input((3,))
    x = layers.Dense(4)(attributes)[:, None, None, :]
    x = x + layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.Conv2D(2, 3, padding="same", activation="tanh")(x)
    y = layers.LeakyReLU(0.01)(SANConv2D(4, 4, 2)(inputs))
    told = layers.Flatten()(layers.Conv2D(3, 3)(y))
    gan = keras_san.AttributeGAN(
        keras.Model([inputs, attributes], x),
        keras.Model(inputs, [SANConv2D(1, 3)(y), told]),
        identity_weight=1.0,
        seed=3,
    )
    gan.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05))
    return gan
"""

GANS = """
# Replicas shuffle their own parts of a batch: here neighbours change places.
keras.random.shuffle = lambda x, seed: x + 1 - 2 * (x % 2)

# Two batches, and a remainder to drop.
N = 20
labels = np.random.default_rng(1).integers(2, size=(N, 3)).astype("float32")
maps = np.random.default_rng(1).integers(2, size=(N, 6, 6, 3), dtype="uint8")

OTHERS = {
    "paired": (make_paired, (images(N)[:, ::2, ::2], images(N))),
    "conditional": (make_conditional, (maps, images(N))),
    "attributes": (make_attributes, (images(N), labels)),
}
SETTINGS = {
    "form": "divide",
    "ema": 0.9,
    "penalty": [
        keras_san.penalties.GradientPenalty(),
        keras_san.penalties.R1(0.1, interval=2),
    ],
    # It acts from the start, and is adapted after four of the six updates.
    "augmentation": keras_san.augmentation.AdaptiveAugmentation(images=64),
}
for name in ("latents", *OTHERS):
    for device, strategy in (("one", None), ("two", mirrored)):
        keras.utils.set_random_seed(0)
        if name == "latents":
            with scope(strategy):
                gan = make_gan(**SETTINGS)
            # What it is compared with needs no graph.
            gan.run_eagerly = strategy is None
            history = gan.fit(batches(images(N)), epochs=3, verbose=0)
            generated = gan.generate(4, seed=0)
        else:
            make, arrays = OTHERS[name]
            with scope(strategy):
                gan = make()
            gan.run_eagerly = strategy is None
            history = gan.fit(batches(*arrays), epochs=2, verbose=0)
            given = [x[:4] for x in arrays[: len(gan.generator.inputs)]]
            generated = gan.generate(*given)
        if name == "paired":
            # The generator alone, as a pretraining has it.
            level = np.full((3, 3, 2), 200, "uint8")
            made = keras_san.callbacks.enlarge(gan.generator, level)
            assert made.shape == (6, 6, 2)
        results[f"{name}/{device}/generated"] = generated
        keep(f"{name}/{device}", strategy, gan, history)

np.savez(sys.argv[1], **results)
"""


# The same script on one device and on each of two workers. In the middle of
# the training the first worker alone makes images and writes a file.
WORKER = """
import tensorflow as tf
from experiments.batches import Batches, to_float

path = sys.argv[1]
strategy = None
if "TF_CONFIG" in os.environ:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == 2

pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 2), "uint8")
labels = np.arange(20, dtype="int32") % 3
noise = Batches(
    [pixels, labels], 8, seed=1, prepare=lambda x, y: (to_float(x), y)
)

# Each replica divides its own part of a batch among the critic's updates.
order = [0, 1, 4, 5, 2, 3, 6, 7] if strategy is None else range(8)

def batches(start=0):
    return noise.feed(start, start + 4).map(
        lambda *xs: tuple(tf.gather(x, list(order)) for x in xs)
    )

CASES = {
    "divide": (
        {
            "form": "divide",
            "ema": 0.9,
            "num_classes": 3,
            "critic_steps": 2,
            "penalty": keras_san.penalties.GradientPenalty(),
        },
        batches(),
    ),
    "arrays": ({"form": "project"}, images(16)),
}

class Watch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        assert all(np.ndim(value) == 0 for value in logs.values())

    def on_epoch_end(self, epoch, logs=None):
        assert len(logs) == 5
        assert all(type(value) is float for value in logs.values())
        if self.model.is_chief:
            generated = self.model.generate(5, seed=0, batch_size=2)
            results[f"{name}/generated/{epoch}"] = generated
            if epoch == 0:
                self.model.save_weights(f"{path}.{name}.weights.h5")

def keep(name, gan):
    for i, weight in enumerate(gan.weights):
        results[f"{name}/weight/{i:02}"] = weight.numpy()

for name, (settings, inputs) in CASES.items():
    # What a worker draws for itself, another does not.
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        gan = make_gan(**settings)
    # What they are compared with needs no graph.
    gan.run_eagerly = strategy is None
    history = gan.fit(
        inputs,
        # These are for arrays, which else would be shuffled.
        batch_size=8,
        shuffle=False,
        steps_per_epoch=2,
        epochs=2,
        verbose=0,
        callbacks=[Watch()],
    )
    for key, values in history.history.items():
        results[f"{name}/history/{key}"] = values
    keep(name, gan)
    results["is_chief"] = gan.is_chief

    if name == "divide":
        # By now the first worker has written its file.
        gan.load_weights(sys.argv[2])
        keep("loaded", gan)
        gan.fit(batches(2), steps_per_epoch=2, verbose=0)
        keep("resumed", gan)

np.savez(path, **results)
"""

JAX = """
import jax

DEVICES = int(sys.argv[2])
assert jax.device_count() == DEVICES
if DEVICES == 2:
    keras.distribution.set_distribution(keras.distribution.DataParallel())

CASES = {
    "divide": {"form": "divide", "ema": 0.9},
    "project": {"form": "project", "critic_steps": 2},
    "penalty": {
        "form": "divide",
        "penalty": [
            keras_san.penalties.GradientPenalty(),
            keras_san.penalties.R1(0.1, interval=2),
        ],
        "augmentation": keras_san.augmentation.AdaptiveAugmentation(images=64),
    },
}

class Generate(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        assert all(type(value) is float for value in logs.values())
        generated = self.model.generate(5, seed=0, batch_size=2)
        results[f"{name}/generated/{epoch}"] = generated

for name, settings in CASES.items():
    keras.utils.set_random_seed(0)
    gan = make_gan(**settings)
    history = gan.fit(
        images(24),
        batch_size=8,
        shuffle=False,
        epochs=2,
        verbose=0,
        callbacks=[Generate()],
    )
    for key, values in history.history.items():
        results[f"{name}/history/{key}"] = values
    for i, weight in enumerate(gan.weights):
        assert len(weight.value.sharding.device_set) == DEVICES
        results[f"{name}/weight/{i:02}"] = weight.numpy()
    assert gan.is_chief

np.savez(sys.argv[1], **results)
"""


def run(script, *commands, timeout=600):
    """Runs a script in a process for each command, all at the same time.

    Args:
        script: String.
        *commands: Pairs of a list of arguments, of which the first is the
            file in which the script leaves its results, and a dict of
            environment variables.
        timeout: Number of seconds after which all are killed.

    Returns:
        A list of the results of each.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = filter(None, [os.environ.get("PYTHONPATH"), package])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    processes, logs = [], []
    deadline = time.monotonic() + timeout
    try:
        for arguments, variables in commands:
            # Not a pipe, which may run full.
            logs.append(f"{arguments[0]}.log")
            with open(logs[-1], "w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", script, *map(str, arguments)],
                        stdout=log,
                        stderr=log,
                        env={**environment, **variables},
                    )
                )
        # One that has failed leaves others waiting for it.
        while any(process.poll() is None for process in processes) and not any(
            process.poll() for process in processes
        ):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
        codes = [process.wait() for process in processes]
    for log in logs:
        if any(codes):
            with open(log) as file:
                print(f"{log}:\n{file.read()[-4000:]}")
    assert not any(codes), f"exit status or signal of each process: {codes}"
    results = []
    for arguments, _ in commands:
        with np.load(arguments[0]) as file:
            results.append(dict(file))
    return results


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    try:
        for s in sockets:
            s.bind(("localhost", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def assert_same(found, expected, key):
    rtol, atol = (1e-4, 1e-6) if "/history/" in key else (1e-5, 1e-5)
    np.testing.assert_allclose(
        found, expected, rtol=rtol, atol=atol, err_msg=key
    )


def check(results, name):
    compared = []
    for key in results:
        if not key.startswith(f"{name}/one/"):
            continue
        compared.append(key.split("/")[2])
        assert_same(results[key.replace("/one/", "/two/")], results[key], key)
    assert {"history", "weight"} <= set(compared)
    ours = [k for k in results if k.startswith(f"{name}/two/replicas/")]
    for key in ours:
        first, second = results[key]
        np.testing.assert_array_equal(first, second, err_msg=key)
    return ours


@needs_tensorflow
def test_critics_and_gans(tmp_path):
    command = [tmp_path / "results.npz"], {}
    script = START + MIRRORED + CRITIC + NETWORKS + GANS
    (results,) = run(script, command)
    for name in ("critic_divide", "critic_project"):
        replicated = check(results, name)
        norms = [key for key in replicated if "/norm/" in key]
        # Once as the norm's own, once as the model's weight.
        assert len(norms) == (0 if name.endswith("_project") else 2 * 4)
        # It has trained: nothing is equal because nothing has happened.
        losses = results[f"{name}/two/history/loss"]
        assert losses.shape == (3,) and losses[-1] < losses[0], name

    drifted = [key for key in results if key.startswith("drift/")]
    assert len(drifted) == 3  # The norm, its vectors, and the counter.
    for key in drifted:
        first, second = results[key]
        np.testing.assert_array_equal(first, second, err_msg=key)
    np.testing.assert_allclose(
        results["drift/norm"][0], results["drift_expected"], rtol=1e-4
    )

    for name in ("latents", "paired", "conditional", "attributes"):
        check(results, name)
        for key in ("critic_loss", "generator_loss", "real_logit"):
            values = results[f"{name}/two/history/{key}"]
            assert np.isfinite(values).all() and np.ptp(values) > 1e-4, key
        np.testing.assert_allclose(
            results[f"{name}/two/generated"],
            results[f"{name}/one/generated"],
            atol=1e-4,
            err_msg=name,
        )


@needs_tensorflow
def test_two_workers(tmp_path):
    workers = [f"localhost:{port}" for port in free_ports(2)]
    file = tmp_path / "worker_0.npz.divide.weights.h5"
    commands = [
        (
            [tmp_path / "one.npz", tmp_path / "one.npz.divide.weights.h5"],
            {"CUDA_VISIBLE_DEVICES": "-1"},
        )
    ]
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": workers}, "task": task}
        commands.append(
            (
                [tmp_path / f"worker_{index}.npz", file],
                {"CUDA_VISIBLE_DEVICES": "-1", "TF_CONFIG": json.dumps(config)},
            )
        )
    one, first, second = run(START + NETWORKS + WORKER, *commands)
    assert one.pop("is_chief") and first.pop("is_chief")
    assert not second.pop("is_chief")
    # It has neither made images nor written files.
    alone = {key for key in first if "/generated/" in key}
    assert len(alone) == 2 * 2 and second.keys() == first.keys() - alone
    assert not list(tmp_path.glob("worker_1*.h5"))
    assert one.keys() == first.keys()
    for key, expected in one.items():
        assert_same(first[key], expected, key)
    for key, value in second.items():
        np.testing.assert_array_equal(value, first[key], err_msg=key)
    # It has trained, and what was restored is not what it ended with.
    for key in (key for key in one if key.startswith("divide/history/")):
        assert np.ptp(one[key]) > 1e-4, key
    weights = [key for key in one if key.startswith("divide/weight/")]
    moved = 0.0
    for key in weights:
        loaded = one[key.replace("divide", "loaded")]
        moved = max(moved, np.abs(loaded - one[key]).max())
        resumed = key.replace("divide", "resumed")
        assert_same(first[resumed], first[key], resumed)
    assert moved > 1e-3


@pytest.mark.skipif(BACKEND != "jax", reason="it is about JAX; runs there")
def test_two_devices_of_jax(tmp_path):
    commands = [
        (
            [tmp_path / f"{count}.npz", count],
            {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            },
        )
        for count in (1, 2)
    ]
    one, two = run(START + NETWORKS + JAX, *commands)
    assert one.keys() == two.keys()
    assert {key.split("/")[0] for key in one} == {
        "divide",
        "project",
        "penalty",
    }
    for key, expected in one.items():
        assert_same(two[key], expected, key)
        if "/history/" in key:
            assert np.ptp(expected) > 1e-4, key


@pytest.mark.skipif(BACKEND != "jax", reason="it is about JAX; runs there")
def test_the_example_on_two_devices_of_jax_without_tensorflow(tmp_path):
    script = """
import sys
sys.modules["tensorflow"] = None
from experiments import image_generation
image_generation.main(sys.argv[1:])
"""
    command = "--width 0.03 --batch-size 8 --steps-per-epoch 2 --epochs 1"
    command += f" --strategy data_parallel --output {tmp_path}"
    result = subprocess.run(
        [sys.executable, "-c", script, *command.split()],
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    files = {path.name for path in (tmp_path / "digits-san").iterdir()}
    assert {"gan.keras", "samples.png", "log.csv", "tensorboard"} <= files
    assert "generator" not in files
    assert "no SavedModel" in result.stdout
