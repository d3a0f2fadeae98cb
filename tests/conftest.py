"""Settings of all tests, and the fixtures that several files share."""

import os

import pytest

# Before TensorFlow is imported. Two workers share two cores, so that threads
# within an operation would only wait for each other.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture
def fresh_keras():
    """Resets names and the precision of layers, as in a new process."""
    import keras

    policy = keras.config.dtype_policy()
    keras.utils.clear_session(free_memory=False)
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def quick(fresh_keras, monkeypatch):
    """Makes trainings fast, see `helpers.quickly`."""
    from helpers import quickly

    quickly(monkeypatch)


@pytest.fixture
def children_here(quick, monkeypatch):
    """Runs the processes of tools in this one, and returns a list of them."""
    from helpers import run_children_here

    return run_children_here(monkeypatch)
