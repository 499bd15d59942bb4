"""Configs read back from the config.json of a run: the inverse of `experiments.config.as_json`.

Only classes that belong to configs are made: the dataclasses of experiments.config, of the tasks
and the models, and the public ones of optim. A sequence comes back as a tuple.
"""

import dataclasses
import importlib
import inspect
import json
import pathlib
import pkgutil
from types import ModuleType
from typing import Any

import optim
from experiments import config as configs
from experiments import models, tasks
from experiments.config import Config, UserError


def read_config(workdir: pathlib.Path) -> Config:
    """The config of the run that `workdir` holds.

    Raises:
        UserError: there is no run, or its config cannot be read back.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run: there is no config.json in it.")
    try:
        config = from_json(json.loads(path.read_text())["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read back: {error}.") from error
    if not isinstance(config, Config):
        raise UserError(f"{path} holds no experiments.config.Config.")
    return config


def from_json(value: Any) -> Any:
    """A config from what `as_json` made of it.

    Raises:
        ValueError: a class that is not of configs, or one that lacks or has other fields.

    >>> from experiments.config import Schedule, as_json
    >>> from_json(as_json(Schedule("wsd_s_schedule", {"budgets": (10, 20)})))
    Schedule(name='wsd_s_schedule', kwargs={'budgets': (10, 20)})
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        return {key: from_json(item) for key, item in value.items()}
    name = value["class"]
    fields = {key: from_json(item) for key, item in value.items() if key != "class"}
    if name == "dict":
        return dict(fields["items"])
    known = classes()
    if name not in known:
        raise ValueError(f"{name!r} is no class of configs; accepted: {', '.join(sorted(known))}")
    try:
        return known[name](**fields)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def classes() -> dict[str, type]:
    """The classes that a config may be made of, by name."""
    public = {name: getattr(optim, name) for name in dir(optim)}
    found = {name: value for name, value in public.items() if _is_class(value)}
    for module in (configs, *_modules(tasks), *_modules(models)):
        own = {
            k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        }
        found |= {name: value for name, value in own.items() if _is_class(value)}
    return found


def _is_class(value: Any) -> bool:
    return inspect.isclass(value) and dataclasses.is_dataclass(value)


def _modules(package: ModuleType) -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]
