"""Tests of optim/inspection.py: exact bytes for each parameter, whatever wraps the method."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import optim

PARAMS = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}, "scale": jnp.ones(())}


def rows(tx, params=PARAMS):
    """{path: (method, bytes)} and the totals."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in optim.describe(tx, params).splitlines()]
    leaves = {line[0]: (line[3], int(line[4])) for line in lines[1:-2]}
    return leaves, int(lines[-2][1]), lines[-1][1]


@pytest.mark.parametrize(
    ("tx", "method", "bytes_each", "shared"),
    [
        (optim.lion(1e-3), "lion", 4, 0),
        (optim.lion(1e-3, mu_dtype=jnp.bfloat16), "lion", 2, 0),
        (optax.adamw(1e-3), "adam", 8, 4),
        (optax.chain(optax.clip(1.0), optax.adam(1e-3)), "adam", 8, 4),
        (optax.sgd(0.1, momentum=0.9), "trace", 4, 0),
        (optax.sgd(0.1), "-", 0, 0),
        (optim.keep_if_finite(optax.adam(1e-3)), "adam", 8, 12),
        (optax.chain(optim.lion(1e-3), optim.params_ema(0.9)), "lion, params_ema", 8, 4),
        (optim.params_tail_average(2), "params_tail_average", 4, 4),
        (optim.params_lawa(3, 2), "params_lawa", 12, 8),
        (optim.inject_hyperparams(optim.lion)(1e-3), "lion", 4, 4 * 4 + 4),
    ],
)
def test_every_byte_is_counted_where_it_belongs(tx, method, bytes_each, shared):
    leaves, found, total = rows(tx)
    sizes = {"dense/bias": 4, "dense/kernel": 32, "scale": 1}
    assert leaves == {path: (method, bytes_each * size) for path, size in sizes.items()}
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(PARAMS)))
    assert int(total.split(",")[0]) == held == found + bytes_each * 37
    assert found == shared


def test_groups_show_their_own_methods():
    labels = optim.path_labels(PARAMS, {".*/kernel": "lion"}, default="frozen")
    tx = optax.partition({"lion": optim.lion(1e-3), "frozen": optax.set_to_zero()}, labels)
    leaves, _, _ = rows(tx)
    assert leaves == {"dense/bias": ("-", 0), "dense/kernel": ("lion", 128), "scale": ("-", 0)}


def test_factors_below_a_parameters_name_are_its_own():
    def init(params):
        return optax.TraceState({"w": (jnp.zeros((8, 8)), jnp.zeros((4, 4)))})

    tx = optax.GradientTransformation(init, lambda u, s, p=None: (u, s))
    leaves, shared, _ = rows(tx, {"w": jnp.ones((8, 4))})
    assert leaves == {"w": ("trace", 4 * (64 + 16))} and shared == 0


def test_indices_of_a_chain_are_not_those_of_a_list_of_parameters():
    params = [jnp.ones((2, 3)), jnp.ones(4), jnp.ones(5)]
    for wrap in (lambda tx: tx, optim.keep_if_finite):
        leaves, shared, _ = rows(wrap(optax.chain(optim.lion(0.1), optim.params_ema(0.5))), params)
        assert leaves == {
            "0": ("lion, params_ema", 48),
            "1": ("lion, params_ema", 32),
            "2": ("lion, params_ema", 40),
        }
        assert shared in (4, 12)


def test_one_array_is_a_tree_of_parameters_too():
    tx = optim.inject_hyperparams(optax.adam)(0.1)
    params = jnp.ones(4, jnp.bfloat16)
    shared = 4 + 4 + 4 * len(tx.init(params).hyperparams)  # two counts
    lines = [line.split() for line in optim.describe(tx, params).splitlines()[1:]]
    assert lines[0] == ["(4,)", "bfloat16", "adam", "16"]
    assert lines[1] == ["shared", str(shared)] and lines[2][1] == f"{16 + shared},"


def test_multi_steps_holds_gradients_and_the_inner_state():
    tx = optax.MultiSteps(optim.lion(0.1), 2)
    leaves, _, _ = rows(optax.GradientTransformation(tx.init, tx.update))
    assert leaves["dense/bias"] == ("lion, multi_steps", 32)


def test_dtypes_and_shapes_are_shown():
    shown = optim.describe(optax.sgd(0.1), {"w": jnp.ones((2, 3), jnp.bfloat16), "none": None})
    assert shown.splitlines()[1].split() == ["w", "(2,", "3)", "bfloat16", "-", "0"]
    assert optim.describe(optax.sgd(0.1), {}).endswith("0, 0 a parameter")


def test_nothing_is_made():
    params = {"w": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)}
    assert str(8 * 2**40) in optim.describe(optax.adam(1e-3), params)


def test_a_stack_of_matrices_has_a_line_of_its_own():
    params = {"b": jnp.ones(3), "w": jnp.ones((2, 4)), "x": jnp.ones((4, 2))}
    lines = optim.describe(optim.soap(0.1), params).splitlines()
    # Two matrices: moments 2 x 2 x 8, factors and bases 2 x 2 x (4 + 16), 4 bytes each.
    assert lines[4].split() == ["stack", "2x4_float32", "soap", "448"]
    assert lines[1].split() == ["b", "(3,)", "float32", "soap", "24"]
    assert lines[2].split() == ["w", "(2,", "4)", "float32", "-", "0"]
    assert lines[5].split() == ["shared", "8"]
