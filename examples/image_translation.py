# # Photographs of label maps
#
# A generator learns to paint photographs of maps that tell the class of each
# pixel, against a SAN critic (also called discriminator) that sees both. The
# networks are small ones of SPADE's kind. The classes are the main colours of
# scikit-image's photographs; it takes some minutes on two CPU cores.
#
# For scenes of your own, let `maps` and `images` be theirs.

# +
import os

# Before TensorFlow is imported: fast convolutions on older CPUs, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import skimage
from PIL import Image, ImageFilter

import keras_san
from keras_san import callbacks
from keras_san.networks import spade

FILES = ["astronaut.png", "coffee.png", "rocket.jpg", "chelsea.png"]
CLASSES = 12
SIZE = 96
BATCH_SIZE = 4
EPOCHS = 15
SHOWN = 8  # Windows, of the right end of the last photograph.
FOLDER = "runs/image-translation"

keras.utils.set_random_seed(0)
# -

# ## Maps and images
#
# Photographs are scaled to the height of three windows and cut into windows
# that overlap. Maps are one-hot, `(number, height, width, classes)`, images
# floats in [-1, 1].

# +
photographs = []
for name in FILES:
    image = Image.open(os.path.join(skimage.data_dir, name)).convert("RGB")
    width = round(image.width * 3 * SIZE / image.height)
    photographs.append(image.resize((width, 3 * SIZE), Image.BICUBIC))
film = Image.fromarray(np.concatenate(photographs, axis=1))
colours = film.quantize(CLASSES, kmeans=10)
labels = film.quantize(palette=colours, dither=Image.Dither.NONE)
# Each pixel gets the class that most pixels around it have.
labels = Image.fromarray(np.asarray(labels)).filter(ImageFilter.ModeFilter(9))

windows = [
    (left, top, left + SIZE, top + SIZE)
    for left in range(0, film.width - SIZE + 1, SIZE // 2)
    for top in range(0, film.height - SIZE + 1, SIZE // 2)
]
images = np.stack([np.asarray(film.crop(window)) for window in windows])
images = images.astype("float32") / 127.5 - 1.0
labels = np.stack([np.asarray(labels.crop(window)) for window in windows])
maps = np.eye(CLASSES, dtype="float32")[labels]

# What is shown is not trained on.
end = film.width - 2 * SIZE
train = [i for i, window in enumerate(windows) if window[2] <= end]
shown = [i for i, window in enumerate(windows) if window[0] >= end][:SHOWN]
# -

# ## Networks
#
# The critic looks at images and maps on two scales, and the generator also
# matches what it finds on the way.

# +
shared = {"resolution": (SIZE, SIZE), "map_channels": CLASSES, "width": 0.25}
gan = keras_san.PairedGAN(
    spade.generator(upsamplings=5, **shared),
    spade.critic(normalizer="san", **shared),
    feature_matching=10.0,
    joint=True,
    ema=0.99,
    seed=0,
)
gan.compile(
    keras.optimizers.Adam(5e-4, beta_1=0.5, beta_2=0.9),
    keras.optimizers.Adam(5e-4, beta_1=0.5, beta_2=0.9),
)
# -

# ## Training
#
# After each epoch `samples.png` shows maps, what is made of them, and truth.

# +
palette = np.reshape(colours.getpalette()[: 3 * CLASSES], (CLASSES, 3))
painted = palette[labels[shown]].astype("float32") / 127.5 - 1.0


def picture(gan):
    made = gan.generate(maps[shown])
    rows = np.concatenate([painted, made, images[shown]])
    return callbacks.image_grid(rows, columns=len(shown))


gan.fit(
    maps[train],
    images[train],
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    verbose=0,
    callbacks=[
        callbacks.Progress(),
        callbacks.SampleGrid(FOLDER, scale=1, picture=picture),
        callbacks.TrainingLog(FOLDER),
    ],
)
# -

# ## What is left

gan.averaged_generator.save(f"{FOLDER}/generator.keras")
if keras.config.backend() != "torch":  # There are no SavedModels of PyTorch.
    gan.averaged_generator.export(f"{FOLDER}/generator", verbose=False)
print(f"Look at {FOLDER}/samples.png and {FOLDER}/curves.png")
