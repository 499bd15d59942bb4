"""The dense solve: products, singular matrices."""

import jax
import jax.numpy as jnp
import numpy as np

import optim

from .systems import matrix, right_hand_side, solved


def test_solves_to_rounding_for_one_product_a_unknown():
    a, b = matrix("nonsymmetric", 1e3), right_hand_side()
    with jax.enable_x64(True):
        x, info = solved("dense_solve")(jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-10)
        assert (int(info.iterations), int(info.products)) == (1, 41)
        assert info.converged and info.residual < 1e-11


def test_columns_and_rows_are_not_exchanged():
    a = jnp.array([[1.0, 5.0], [0.0, 2.0]])
    x, _ = optim.dense_solve(
        lambda v: {"a": a[0, 0] * v["a"] + a[0, 1] * v["b"], "b": 2 * v["b"]},
        {"a": jnp.float32(11.0), "b": jnp.float32(4.0)},
    )
    assert (float(x["a"]), float(x["b"])) == (1.0, 2.0)


def test_singular_is_no_solution():
    x, info = optim.dense_solve(lambda v: jnp.array([v.sum(), v.sum()]), jnp.array([1.0, 2.0]))
    assert not info.converged and not jnp.isfinite(x).all()


def test_no_unknowns_at_all():
    x, info = optim.dense_solve(lambda v: v, {"empty": jnp.zeros((0, 3))})
    assert x["empty"].shape == (0, 3) and info.converged and info.products == 0
