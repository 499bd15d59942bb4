"""Every example in a docstring or in README.md runs and prints what it shows."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import bilevel
import optim
import zeroth_order

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("optim", "bilevel", "zeroth_order", "experiments")
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def module_names():
    for package in PACKAGES:
        yield package
        path = [str(ROOT / package)]
        yield from (found.name for found in pkgutil.walk_packages(path, prefix=f"{package}."))


# Modules whose examples compile for seconds.
LONG = (
    *(f"bilevel.differentiation.{name}" for name in ("conditions", "implicit", "maps")),
    *(f"bilevel.inner_solvers.{name}" for name in ("block_coordinate_descent", "equality_qp")),
    *(
        f"bilevel.inner_solvers.{name}"
        for name in ("isotonic", "l_bfgs_b", "mirror_descent", "osqp")
    ),
    *("optim.curvature.products", "optim.curvature.spectrum", "optim.matrix.cosmos"),
    *("optim.matrix.kron", "optim.matrix.shampoo", "optim.quantized.stochastic_rounding"),
    *("optim.second_order.sketched_newton", "optim.solvers.nystrom"),
    *("zeroth_order.algorithms.fzoos", "zeroth_order.streaming"),
)


def marked(name):
    return pytest.param(name, marks=pytest.mark.slow) if name in LONG else name


def run(examples):
    """Run one doctest, keeping the names it defines; a failure shows what was expected and came."""
    report = []
    runner = doctest.DocTestRunner(verbose=False)
    result = runner.run(examples, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)


def test_what_is_slow_is_there():
    assert {*LONG} <= {*module_names()}


@pytest.mark.parametrize("name", [marked(name) for name in sorted(module_names())])
def test_docstring_examples(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for found in doctest.DocTestFinder(exclude_empty=True).find(module):
        run(found)


def public_functions():
    for package in (optim, bilevel, zeroth_order):
        for name in package.__all__:
            if inspect.isfunction(getattr(package, name)):
                yield f"{package.__name__}.{name}"


def test_every_package_has_public_functions():
    assert {name.split(".")[0] for name in public_functions()} == {
        "optim",
        "bilevel",
        "zeroth_order",
    }


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_public_function_has_an_example(name):
    package, function = name.split(".")
    documentation = inspect.getdoc(getattr(importlib.import_module(package), function)) or ""
    assert doctest.DocTestParser().get_examples(documentation), (
        f"{name} has no example in its docstring"
    )


def test_readme_examples():
    """The Python blocks are one session, from the first to the last."""
    readme = ROOT / "README.md"
    blocks = FENCE.findall(readme.read_text())
    assert blocks, "README.md shows no Python example"
    names = {}
    for number, block in enumerate(blocks, start=1):
        title = f"README.md, Python example {number}"
        examples = doctest.DocTestParser().get_doctest(block, names, title, str(readme), 0)
        assert examples.examples, f"{title} has no >>> prompts, so nothing proves that it runs"
        run(examples)
        names = examples.globs
