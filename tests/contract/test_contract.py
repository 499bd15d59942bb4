"""Every row keeps every promise that it does not waive."""

import inspect

import pytest

import optim

from .checks import CHECKS
from .sharded import sharded_equals_unsharded
from .table import OTHER_FUNCTIONS, ROWS

BY_NAME = {check.__name__: check for check in (*CHECKS, sharded_equals_unsharded)}


def keeps(check, row):
    """True if the check passes; any exception breaks it."""
    try:
        check(row)
    except Exception:
        return False
    return True


NAMES = {row.name for row in ROWS}
# Rows that take seconds to compile; these checks compile them again.
LONG = {
    *("kron", "shampoo", "mfac", "with_curvature", "soap", "prodigy of slices", "cosmos"),
    *("regularized_newton", "gradient_noise", "schedule_free_radam", "dadapt_adam", "prodigy"),
    *("greedy_block_descent", "keep_if_finite", "with_gradient_change", "adahessian", "lamb"),
}
AGAIN = {
    *("masked", "partition", "multi_steps", "inject_hyperparams", "vmap_over_rates", "bfloat16"),
}


def is_slow(row, check):
    """What another row runs already, with decay and rate behind it, or what takes long."""
    has_alias = row.name.removeprefix("scale_by_") in NAMES - {row.name}
    return has_alias or (row.name in LONG and check.__name__ in AGAIN)


CASES = [
    pytest.param(
        row,
        check,
        id=f"{row.name}-{check.__name__}",
        marks=pytest.mark.slow if is_slow(row, check) else (),
    )
    for row in ROWS
    for check in CHECKS
]


@pytest.mark.parametrize(("row", "check"), CASES)
def test_contract(row, check):
    if check.__name__ in row.waive:
        assert not keeps(check, row), f"{row.name} keeps {check.__name__}: strike the waiver"
    else:
        check(row)


def test_table_is_not_empty_and_names_are_unique():
    names = [row.name for row in ROWS]
    assert names and CHECKS and len(set(names)) == len(names)


def test_what_is_slow_is_in_the_table():
    assert LONG <= NAMES and BY_NAME.keys() >= AGAIN


def test_waivers_name_a_check_and_give_a_sentence():
    for row in ROWS:
        assert row.waive.keys() <= BY_NAME.keys(), row.name
        assert all(reason.endswith(".") and " " in reason for reason in row.waive.values()), (
            row.name
        )


def test_every_public_function_has_a_row_or_is_no_transformation():
    public = {
        name
        for name in optim.__all__
        if not inspect.isclass(getattr(optim, name)) and not name.endswith("_schedule")
    }
    rows = {row.name for row in ROWS}
    assert public - rows == OTHER_FUNCTIONS
    assert not rows & OTHER_FUNCTIONS
