"""Tests of what zeroth_order exports."""

import ast
import pathlib
import pkgutil

import zeroth_order

ROOT = pathlib.Path(zeroth_order.__file__).parent


def test_all_is_sorted_and_what_the_package_imports():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imported = {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert zeroth_order.__all__ == sorted(imported)


def test_no_public_name_is_a_submodules():
    modules = {module.name for module in pkgutil.iter_modules(zeroth_order.__path__)}
    assert not modules & {*zeroth_order.__all__}
