"""Tests of what optim exports."""

import ast
import importlib
import pathlib
import pkgutil

import pytest

import optim

ROOT = pathlib.Path(optim.__file__).parent
FAMILIES = sorted(path.parent for path in ROOT.glob("*/__init__.py"))


def test_the_public_names_exist_and_are_sorted():
    assert optim.__all__ == sorted(optim.__all__)
    assert all(hasattr(optim, name) for name in optim.__all__)


def test_all_is_what_the_package_imports():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imported = {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert imported == {*optim.__all__}


def test_no_public_name_is_a_submodules():
    assert not {module.name for module in pkgutil.iter_modules(optim.__path__)} & {*optim.__all__}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.name)
def test_a_familys_init_holds_a_docstring_and_nothing_else(family):
    tree = ast.parse((family / "__init__.py").read_text())
    assert len(tree.body) == 1 and ast.get_docstring(tree)
    assert importlib.import_module(f"optim.{family.name}").__doc__
