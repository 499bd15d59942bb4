"""How recordings are replayed: what the files of `methods` declare, and how exact they must be."""

import importlib
import pkgutil

from . import methods
from .replay import Adapter

# A file declares the adapters of its methods and the mistakes that recordings must notice. An
# adapter knows a recording by the name and the hyper-parameters in its meta, and by nothing else.
_FILES = [
    importlib.import_module(f"{methods.__name__}.{module.name}")
    for module in pkgutil.iter_modules(methods.__path__)
]
ADAPTERS: dict[str, Adapter] = {
    name: adapter for file in _FILES for name, adapter in file.ADAPTERS.items()
}
MUTANTS: dict[str, dict[str, Adapter]] = {
    name: mutants for file in _FILES for name, mutants in file.MUTANTS.items()
}

DEFAULT_TOLERANCE = 1e-9
# Looser where the recording itself is less exact than float64.
TOLERANCES = {
    "soap": 5e-6,  # the official QR runs in float32
    "psgd_kron": 1e-6,  # the official triangular solve runs in float32
    "lamb": 1e-5,  # recorded in float32
    "badam": 2e-4,  # recorded in float32
    "bnb8": 1e-4,  # recorded in float32
    "galore_adamw8bit": 1e-4,  # recorded in float32
}


def tolerance(name: str) -> float:
    """The largest relative error that a recording of this method allows."""
    return TOLERANCES.get(name, DEFAULT_TOLERANCE)
