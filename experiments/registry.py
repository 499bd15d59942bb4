"""Finds the entries of a folder: each module that defines a given name is one."""

import importlib
import pkgutil
from types import ModuleType

from experiments.config import UserError


def entries(package: ModuleType, attribute: str) -> dict[str, ModuleType]:
    """The modules directly inside `package` that define `attribute`, by name, in order."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, attribute)}


def choose(found: dict[str, ModuleType], name: str | None, command: str) -> dict[str, ModuleType]:
    """The entry called `name`, or all of them for None.

    Raises:
      UserError: no entry has that name; the sentence lists those that exist.
    """
    if name is None:
        return found
    if name not in found:
        raise UserError(f"{command}: {name!r} is no entry; accepted: {', '.join(found)}.")
    return {name: found[name]}


def listing(found: dict[str, ModuleType]) -> list[tuple[str, str]]:
    """Name and first docstring line of each entry."""
    return [(name, (module.__doc__ or "").strip().split("\n")[0]) for name, module in found.items()]
