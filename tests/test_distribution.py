"""Two replicas train as one device does on the same global batch.

Each script runs in a process of its own: the number of logical devices can
only be set before TensorFlow starts, and a process in which a distributed run
has failed cannot run another.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import BACKEND

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's"
)

START = """
import contextlib, sys
import numpy as np
import keras, tensorflow as tf
from keras import layers
import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper, normalizers

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert mirrored.num_replicas_in_sync == 2
results = {}

def scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()

def batches(*arrays):
    data = tf.data.Dataset.from_tensor_slices(arrays)
    data = data.batch(8, drop_remainder=True)
    return data.map(lambda x: x) if len(arrays) == 1 else data

def norms_of(model):
    return [
        norm
        for layer in model._flatten_layers()
        for norm in getattr(layer, "kernel_norms", [])
    ]

def keep(name, strategy, model, history):
    for key, values in history.history.items():
        results[f"{name}/history/{key}"] = values
    for i, weight in enumerate(model.weights):
        results[f"{name}/weight/{i:02}"] = weight.numpy()
    if strategy:
        # Whatever should be the same everywhere, as each replica has it.
        variables = [v for n in norms_of(model) for v in n.variables]
        variables += model.weights
        for i, variable in enumerate(variables):
            copies = strategy.experimental_local_results(variable.value)
            assert len(copies) == 2, variable.path
            results[f"{name}/replicas/{variable.path}/{i}"] = np.stack(
                [copy.numpy() for copy in copies]
            )

def images(n):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (n, 6, 6, 2)).astype("float32")
"""

CRITIC = """
NORMALIZERS = {
    "san_divide": lambda: normalizers.SparsityAware(form="divide"),
    "san_project": lambda: normalizers.SparsityAware(form="project"),
    "sn_divide": lambda: normalizers.Spectral(form="divide"),
    "sn_project": lambda: normalizers.Spectral(form="project"),
    "san_sample": lambda: normalizers.SparsityAware(
        ratio=0.5, update_interval=3
    ),
}

def critic(make):
    return keras.Sequential([
        keras.Input((6, 6, 2)),
        SANConv2D(4, 3, normalizer=make()),
        layers.LeakyReLU(0.1),
        SANConv2D(4, 4, 2, normalizer=make()),
        layers.LeakyReLU(0.1),
        SANWrapper(layers.DepthwiseConv2D(3), make(), padding="circular"),
        layers.Flatten(),
        SANDense(1, normalizer=make()),
    ])

# 36 images: four batches, and a remainder to drop.
inputs = images(36)
targets = np.sign(inputs.mean((1, 2, 3)))[:, None]

for name, make in NORMALIZERS.items():
    for device, strategy in (("one", None), ("two", mirrored)):
        keras.utils.set_random_seed(0)
        with scope(strategy):
            model = critic(make)
            model.compile(
                keras.optimizers.Adam(0.01), "hinge", metrics=["mae"]
            )
        # What a kernel has become, its first measurement finds.
        for norm in norms_of(model):
            kernel = norm.get_kernel()
            if norm.divides:
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
for variable in layer.kernel_norms[0].variables:
    copies = mirrored.experimental_local_results(variable.value)
    results[f"drift/{variable.name}"] = np.stack([c.numpy() for c in copies])
results["drift_expected"] = np.linalg.norm(kernel.reshape(-1, 2), 2)

np.savez(sys.argv[1], **results)
"""

GAN = """
def make_gan(form, **settings):
    make = lambda: normalizers.SparsityAware(form=form)
    latents = keras.Input((5,))
    # Without batch normalization: its statistics are those of a replica.
    x = layers.Dense(3 * 3 * 4, activation="relu")(latents)
    x = layers.Reshape((3, 3, 4))(x)
    x = layers.Conv2DTranspose(2, 4, 2, "same", activation="tanh")(x)
    generator = keras.Model(latents, x)
    critic = keras.Sequential([
        keras.Input((6, 6, 2)),
        SANConv2D(4, 3, normalizer=make()),
        layers.LeakyReLU(0.1),
        SANConv2D(4, 4, 2, normalizer=make(), kernel_regularizer="l2"),
        layers.Flatten(),
        SANDense(1, normalizer=normalizers.Spectral(form=form)),
    ])
    gan = keras_san.GAN(generator, critic, latent_dim=5, seed=3, **settings)
    # Not Adam: where a gradient is zero but for rounding, it would take whole
    # steps in directions that differ from run to run.
    gan.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05))
    return gan

CASES = {
    "divide": {"form": "divide"},
    "project": {"form": "project"},
    "average": {"form": "divide", "ema": 0.9},
    "penalty": {
        "form": "divide", "penalty": keras_san.losses.GradientPenalty()
    },
}
for name, settings in CASES.items():
    for device, strategy in (("one", None), ("two", mirrored)):
        keras.utils.set_random_seed(0)
        with scope(strategy):
            gan = make_gan(**settings)
        history = gan.fit(batches(images(36)), epochs=2, verbose=0)
        results[f"{name}/{device}/generated"] = gan.generate(4, seed=0)
        keep(f"{name}/{device}", strategy, gan, history)

np.savez(sys.argv[1], **results)
"""


def run(script, path):
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [os.environ.get("PYTHONPATH", ""), package]
    result = subprocess.run(
        [sys.executable, "-c", START + script, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    with np.load(path) as results:
        return dict(results)


def check(results, name):
    compared = []
    for key in results:
        if not key.startswith(f"{name}/one/"):
            continue
        kind = key.split("/")[2]
        compared.append(kind)
        rtol, atol = (1e-4, 1e-6) if kind == "history" else (1e-5, 1e-5)
        np.testing.assert_allclose(
            results[key.replace("/one/", "/two/")],
            results[key],
            rtol=rtol,
            atol=atol,
            err_msg=key,
        )
    assert {"history", "weight"} <= set(compared)
    ours = [k for k in results if k.startswith(f"{name}/two/replicas/")]
    for key in ours:
        first, second = results[key]
        np.testing.assert_array_equal(first, second, err_msg=key)
    return ours


def test_critics(tmp_path):
    results = run(CRITIC, tmp_path / "results.npz")
    names = {key.split("/")[0] for key in results if "/one/" in key}
    assert len(names) == 5
    for name in names:
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


def test_gans(tmp_path):
    results = run(GAN, tmp_path / "results.npz")
    names = {key.split("/")[0] for key in results}
    assert names == {"divide", "project", "average", "penalty"}
    for name in names:
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
