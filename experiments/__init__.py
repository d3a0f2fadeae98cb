"""Scripts that train with keras_san: one a task."""

import os

# Before TensorFlow is imported. Its greetings would bury the progress bar, and
# on CPUs without AVX-512 it leaves oneDNN out unless it is asked to take it: a
# step then takes 1.6 times as long.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
