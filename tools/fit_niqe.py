"""Fits NIQE's model of pristine photographs to a folder of them.

The default of `keras_san.metrics.image_quality.niqe` was made from the 200
photographs that BSDS500 has for training (Arbelaez et al., 2011), in the
folder `bsds500/train`, by

    python tools/fit_niqe.py bsds500/train --output keras_san/metrics/niqe.npz

The same photographs give the same file, to the rounding of the machine.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from keras_san.metrics import image_quality  # noqa: E402

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")


def main(argv=None):
    """Fits as the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        A pair of ints, how many images and how many blocks were used.

    Raises:
        ValueError: for a folder without photographs of 96x96 at least.
    """
    parser = argparse.ArgumentParser(
        prog="python tools/fit_niqe.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", help="of photographs, the sharper the better")
    add("--output", default="niqe.npz", help="file to write")
    add(
        "--sharpness",
        type=float,
        default=0.75,
        help="use blocks that have this share of the sharpest one's contrast",
    )
    args = parser.parse_args(argv)

    names = sorted(
        name
        for name in os.listdir(args.folder)
        if name.lower().endswith(EXTENSIONS)
    )
    if not names:
        raise ValueError(
            f"The folder needs files {', '.join(EXTENSIONS)}. Received: "
            f"{args.folder}"
        )
    features = []
    for name in names:
        with Image.open(os.path.join(args.folder, name)) as file:
            image = np.asarray(file.convert("RGB"))
        features.append(
            image_quality.niqe_features(image, sharpness=args.sharpness)
        )
    blocks = np.concatenate(features)
    image_quality.NIQEModel.fit(blocks).save(args.output)
    print(f"{len(names)} images, {len(blocks)} blocks: {args.output}")
    return len(names), len(blocks)


if __name__ == "__main__":
    main()
