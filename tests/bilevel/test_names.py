"""Tests of what bilevel exports."""

import ast
import pathlib
import pkgutil

import bilevel

ROOT = pathlib.Path(bilevel.__file__).parent


def test_all_is_sorted_and_what_the_package_imports():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imported = {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert bilevel.__all__ == sorted(imported)


def test_no_public_name_is_a_submodules():
    modules = {module.name for module in pkgutil.iter_modules(bilevel.__path__)}
    assert not modules & {*bilevel.__all__}
