"""The table of jaxopt's names is whole, and the names that it gives for them exist."""

import functools
import importlib
import pathlib
import re

import jaxopt
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / "notebooks" / "coming_from_jaxopt.ipynb"
MODULES = (
    "base",
    "implicit_diff",
    "isotonic",
    "linear_solve",
    "loop",
    "loss",
    "objective",
    "perturbations",
    "projection",
    "prox",
    "tree_util",
)
MODULE = type(jaxopt)


def rows():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    names = [[re.findall(r"`([\w.]+)`", cell) for cell in line] for line in lines]
    return [(theirs, [n for cell in rest for n in cell]) for theirs, *rest in names]


def public():
    """jaxopt's names, those of its modules with the module before them."""
    for module in ("", *MODULES):
        found = importlib.import_module("jaxopt" + (module and f".{module}"))
        for name, value in vars(found).items():
            if not name.startswith("_") and not isinstance(value, MODULE):
                yield f"{module}.{name}" if module else name


def exists(name):
    package, *path = name.split(".")
    return functools.reduce(
        lambda at, n: getattr(at, n, None), path, importlib.import_module(package)
    )


def test_every_public_name_of_jaxopt_has_a_row():
    listed = {name for theirs, _ in rows() for name in theirs}
    named = set(public())
    # What a module repeats has one row.
    repeated = {n for n in named if "." in n and n.split(".")[1] in listed}
    assert listed <= named
    assert sorted(named - listed - repeated) == []


@pytest.mark.parametrize("package", ["bilevel", "optim", "optax", "optimistix", "jax"])
def test_every_name_in_it_exists(package):
    named = {n for _, ours in rows() for n in ours if n.startswith(f"{package}.")}
    assert named
    assert sorted(n for n in named if exists(n) is None) == []
