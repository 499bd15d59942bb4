"""What every test shares: strict keys, and compilations kept between workers and runs."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _older_objects_are_not_searched():
    """Keep the garbage collector from going through all that earlier modules have compiled."""
    gc.collect()
    gc.freeze()
