"""What every test shares: strict keys, and compilations kept between processes and runs."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# By the environment, so that the processes that tests start share them too.
os.environ.update(
    JAX_COMPILATION_CACHE_DIR=str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
)

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="module")
def _older_objects_are_not_searched():
    """Keep the garbage collector from going through all that earlier modules have compiled."""
    gc.collect()
    gc.freeze()
