# # Other colours, other strokes
#
# A generator learns to change attributes of images, against a SAN critic (also
# called discriminator) that also tells which attributes an image has. The
# networks are small StarGANs, the images scikit-learn's handwritten digits in
# red, green and blue, thin and thick. It takes some minutes on two CPU cores.
#
# For images of your own, let `images` and `attributes` be theirs.

# +
import os

# Before TensorFlow is imported: fast convolutions on older CPUs, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

import keras_san
from keras_san import callbacks
from keras_san.networks import stargan

SIZE = 32
BATCH_SIZE = 16
EPOCHS = 10
SHOWN = 8  # Digits that are not trained on.
FOLDER = "runs/attribute-transfer"

keras.utils.set_random_seed(0)
# -

# ## Images and attributes
#
# Images are floats in [-1, 1], attributes 0 or 1, `(number, 4)`: red, green,
# blue, thick.


# +
def draw(digit, thick):
    image = Image.fromarray(np.pad(digit * 255 / 16, 1).astype("uint8"))
    image = image.resize((2 * SIZE, 2 * SIZE), Image.BICUBIC)
    image = image.point(lambda level: 255 * (level > 120))
    change = ImageFilter.MaxFilter(3) if thick else ImageFilter.MinFilter(3)
    image = image.filter(change).filter(ImageFilter.GaussianBlur(1))
    return np.asarray(image.resize((SIZE, SIZE), Image.BOX)) / 255.0


rng = np.random.default_rng(0)
digits = load_digits().images
colour = rng.integers(3, size=len(digits))
thick = rng.integers(2, size=len(digits))
strokes = np.stack([draw(*each) for each in zip(digits, thick)])
ink = rng.uniform(0.1, 0.4, (len(digits), 3))
ink[range(len(digits)), colour] = rng.uniform(0.8, 1.0, len(digits))
images = strokes[..., None] * ink[:, None, None] * 2.0 - 1.0
images = images.astype("float32")
attributes = np.c_[np.eye(3)[colour], thick].astype("float32")
# -

# ## Networks

# +
gan = keras_san.AttributeGAN(
    stargan.generator(4, width=0.25, blocks=2),
    stargan.critic(SIZE, 4, width=0.5, halvings=3, normalizer="san"),
    identity_weight=10.0,
    seed=0,
)
gan.compile(
    keras.optimizers.Adam(5e-4, beta_1=0.5, beta_2=0.9),
    keras.optimizers.Adam(5e-4, beta_1=0.5, beta_2=0.9),
)
# -

# ## Training
#
# After each epoch `samples.png` shows, from above: digits as they are, red,
# green, blue, and with the other stroke.

# +
shown = images[-SHOWN:]


def picture(gan):
    rows = [shown]
    for target in range(4):
        wanted = attributes[-SHOWN:].copy()
        if target < 3:
            wanted[:, :3] = np.eye(3)[target]
        else:
            wanted[:, 3] = 1.0 - wanted[:, 3]
        rows.append(gan.generate(shown, wanted))
    return callbacks.image_grid(np.concatenate(rows), columns=SHOWN)


gan.fit(
    images[:-SHOWN],
    attributes[:-SHOWN],
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    verbose=0,
    callbacks=[
        callbacks.Progress(),
        callbacks.SampleGrid(FOLDER, picture=picture),
        callbacks.TrainingLog(FOLDER),
    ],
)
# -

# ## What is left

gan.generator.save(f"{FOLDER}/generator.keras")
if keras.config.backend() != "torch":  # There are no SavedModels of PyTorch.
    gan.generator.export(f"{FOLDER}/generator", verbose=False)
print(f"Look at {FOLDER}/samples.png and {FOLDER}/curves.png")
