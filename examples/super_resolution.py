# # Larger photographs
#
# A network learns to enlarge photographs by 4, first by the pixel loss alone,
# then against a SAN critic (also called discriminator), which wants sharp edges
# and textures. It trains on scikit-image's photographs, for some minutes on two
# CPU cores. The networks are small SRGANs.
#
# To use your own photographs, change `FILES` and `SHOWN`.

# +
import os

# Before TensorFlow is imported: fast convolutions on older CPUs, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import skimage
from PIL import Image

import keras_san
from keras_san import callbacks, losses
from keras_san.metrics.resizing import imresize
from keras_san.networks import srgan

FILES = ["astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
FILES = [os.path.join(skimage.data_dir, name) for name in FILES]
SHOWN = os.path.join(skimage.data_dir, "chelsea.png")

SCALE = 4
SIZE = 96  # Of the squares that are cut out, and should come out again.
SQUARES = 1600
BATCH_SIZE = 8
PIXEL_EPOCHS, EPOCHS = 3, 2
FOLDER = "runs/super-resolution"

keras.utils.set_random_seed(0)
# -

# ## Pairs
#
# Squares at random places, and the same four times smaller, by the bicubic
# filter that the field measures with (MATLAB's). Floats in [-1, 1].


# +
def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def square(photograph, rng):
    top, left = (rng.integers(n - SIZE + 1) for n in photograph.shape[:2])
    part = photograph[top : top + SIZE, left : left + SIZE]
    return part[:, ::-1] if rng.integers(2) else part


def floats(images):
    return np.stack(images).astype("float32") / 127.5 - 1.0


rng = np.random.default_rng(0)
photographs = [read(path) for path in FILES]
squares = [square(photographs[i % len(FILES)], rng) for i in range(SQUARES)]
large = floats(squares)
small = floats([imresize(image, 1 / SCALE) for image in squares])

truth = read(SHOWN)[:300, :448]  # A multiple of SCALE each.
shown = imresize(truth, 1 / SCALE)
# -

# ## By the pixel loss alone
#
# Any Keras model from small to large images will do. `ImageQuality` adds PSNR,
# SSIM and NIQE (lower is better) of the photograph that was left out.

# +
generator = srgan.generator(SCALE, width=0.5, blocks=4)
generator.compile(keras.optimizers.Adam(1e-3), loss="mean_absolute_error")
quality = callbacks.ImageQuality([shown], [truth], crop=SCALE)
generator.fit(
    small,
    large,
    batch_size=BATCH_SIZE,
    epochs=PIXEL_EPOCHS,
    verbose=0,
    callbacks=[quality, callbacks.Progress()],
)
pictures = [imresize(shown, SCALE), callbacks.enlarge(generator, shown)]
# -

# ## Against a critic
#
# The generator goes on from where it is.

# +
gan = keras_san.PairedGAN(
    generator,
    srgan.critic(64, width=0.25, normalizer="san"),  # Sees 64 x 64 pixels.
    content_losses=[losses.PixelLoss(1.0)],
    adversarial_weight=0.01,
    seed=0,
)
gan.compile(
    keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9),
    keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9),
)
gan.fit(
    small,
    large,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    verbose=0,
    callbacks=[
        quality,
        callbacks.Progress(),
        callbacks.TrainingLog(FOLDER),
    ],
)
pictures += [callbacks.enlarge(gan, shown), truth]
# -

# ## What is left
#
# A picture: bicubic, pixel loss, SAN critic, truth. And the generator, which
# takes photographs of any size.

Image.fromarray(np.concatenate(pictures, axis=1)).save(f"{FOLDER}/pictures.png")
generator.save(f"{FOLDER}/generator.keras")
print(f"Look at {FOLDER}/pictures.png and {FOLDER}/curves.png")
