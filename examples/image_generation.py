# # Images out of nothing
#
# A generator and a SAN critic (also called discriminator) learn from
# handwritten digits, which come with scikit-learn, in about a minute on two CPU
# cores. The networks are SN-GAN's CNN; the critic's kernels are divided by
# their sparsity aware norms.
#
# To train on CIFAR-10 or STL-10, change `DATA`: tensorflow-datasets will
# download it. To use your own images, let `load` return them.

# +
import os

# Before TensorFlow is imported: fast convolutions on older CPUs, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_san
from keras_san import callbacks
from keras_san.networks import sngan

DATA = "digits"  # "digits", "cifar10" or "stl10"

# Pixels, factor on the channels, learning rate, epochs.
SIZE, WIDTH, LEARNING_RATE, EPOCHS = {
    "digits": (16, 0.25, 2e-3, 10),
    "cifar10": (32, 1.0, 2e-4, 650),
    "stl10": (48, 1.0, 2e-4, 650),
}[DATA]
STEPS_PER_EPOCH = 150  # An epoch is what lies between two pictures.
BATCH_SIZE = 64
LATENT_DIM = 128
FOLDER = f"runs/{DATA}-san"

keras.utils.set_random_seed(0)
# -

# ## Images
#
# Floats in [-1, 1], of shape `(number, height, width, channels)`.


# +
def load(name):
    if name == "digits":
        from sklearn.datasets import load_digits

        images = load_digits().images[..., None] / 16.0 * 255.0
    else:
        import tensorflow_datasets as tfds

        split = {"cifar10": "train", "stl10": "unlabelled"}[name]
        images = tfds.load(name, split=split, batch_size=-1)["image"]
    images = tf.image.resize(images, (SIZE, SIZE), "bicubic").numpy()
    return np.clip(images, 0.0, 255.0).astype("float32") / 127.5 - 1.0


images = load(DATA)
dataset = (
    tf.data.Dataset.from_tensor_slices(images)
    .shuffle(len(images), seed=0)
    .repeat()
    .batch(BATCH_SIZE)
    .prefetch(tf.data.AUTOTUNE)
)
# -

# ## Networks
#
# The only line that makes this critic a SAN critic is `normalizer="san"`; try
# `"sn"` (Miyato's spectral normalization) or `None`. In a critic of your own,
# put `keras_san.SANConv2D` in the place of `Conv2D`.

# +
channels = images.shape[-1]
gan = keras_san.GAN(
    sngan.generator(SIZE, channels, LATENT_DIM, WIDTH),
    sngan.critic(SIZE, channels, WIDTH, normalizer="san"),
    latent_dim=LATENT_DIM,
    loss="hinge",
    ema=0.995,  # Pictures are drawn from an average of the generator's weights.
    seed=0,
)
gan.compile(
    keras.optimizers.Adam(LEARNING_RATE, beta_1=0.5, beta_2=0.9),
    keras.optimizers.Adam(LEARNING_RATE, beta_1=0.5, beta_2=0.9),
)
# -

# ## Training
#
# After each epoch there is a picture `samples.png`, and the losses and the
# critic's norms are drawn into `curves.png`.

gan.fit(
    dataset,
    epochs=EPOCHS,
    steps_per_epoch=STEPS_PER_EPOCH,
    shuffle=False,  # Done above.
    verbose=0,
    callbacks=[
        callbacks.Progress(),
        callbacks.SampleGrid(FOLDER, scale=max(2, 64 // SIZE)),
        callbacks.TrainingLog(FOLDER),
    ],
)

# ## What is left
#
# The whole GAN, to go on with, and the generator alone, for use without this
# package.

# +
gan.save(f"{FOLDER}/gan.keras")
gan.averaged_generator.save(f"{FOLDER}/generator.keras")
if keras.config.backend() != "torch":  # There are no SavedModels of PyTorch.
    gan.averaged_generator.export(f"{FOLDER}/generator", verbose=False)
samples = gan.generate(16, seed=1)  # (16, SIZE, SIZE, channels) in [-1, 1]
print(f"Look at {FOLDER}/samples.png and {FOLDER}/curves.png")
print(f"The generator is in {FOLDER}/generator.keras, and a SavedModel beside")
