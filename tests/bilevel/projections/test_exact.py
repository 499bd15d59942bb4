"""Projections in closed form: affine sets, box sections, simplices, cones. Edges and peers."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import bilevel

box_section = jax.jit(bilevel.projection_box_section)


def test_affine_set_is_jaxopts_where_rows_are_independent():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, a, b = (jnp.asarray(random.normal(size=s)) for s in (5, (3, 5), 3))
        found = bilevel.projection_affine_set(x, a, b)
        wanted = jaxopt.projection.projection_affine_set(x, (a, b))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_affine_set_takes_dependent_rows_that_agree_and_refuses_others():
    """The second row is a million times the first: the same line."""
    x, a = jnp.array([3.0, 1.0]), jnp.array([[1.0, 1.0], [1e6, 1e6]])
    np.testing.assert_allclose(
        bilevel.projection_affine_set(x, a, jnp.array([2.0, 2e6])), [2, 0], atol=1e-6
    )
    assert jnp.isnan(bilevel.projection_affine_set(x, a, jnp.array([2.0, 3e6]))).all()
    # Rows whose lengths differ so are not taken for dependent.
    a = jnp.array([[1.0, 1.0], [1e9, -1e9]])
    found = bilevel.projection_affine_set(x, a, jnp.array([2.0, 0.0]))
    np.testing.assert_allclose(found, [1, 1], rtol=1e-6)


@pytest.mark.slow
def test_affine_set_derivative_where_rows_repeat():
    """Along a change of both rows alike, it is that of one row."""
    x, a, b = np.array([3.0, 1.0, 2.0]), np.array([[1.0, 2.0, -1.0]]), np.array([2.0])
    with jax.enable_x64(True):

        def once(a, b):
            return bilevel.projection_affine_set(x, a, b)

        def twice(a, b):
            return bilevel.projection_affine_set(x, jnp.tile(a, (2, 1)), jnp.tile(b, 2))

        for argument in (0, 1):
            wanted, found = (jax.jacrev(f, argument)(a, b) for f in (once, twice))
            np.testing.assert_allclose(found, wanted, atol=1e-13)


def test_affine_set_without_equations_and_with_as_many_as_unknowns():
    x = jnp.array([3.0, 1.0])
    assert (bilevel.projection_affine_set(x, jnp.zeros((0, 2)), jnp.zeros(0)) == x).all()
    found = bilevel.projection_affine_set(x, jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.ones(2))
    np.testing.assert_allclose(found, [0.5, 0.25], rtol=1e-6)


@pytest.mark.slow
def test_box_section_is_the_simplex_and_jaxopts():
    x = jnp.asarray(np.random.default_rng(0).random(5), jnp.float32)
    wanted = optax.projections.projection_simplex(x)
    np.testing.assert_allclose(box_section(x, 0.0, 1.0, 1.0, 1.0), wanted, atol=1e-6)
    np.testing.assert_allclose(box_section(x, 0.0, jnp.inf, 1.0, 1.0), wanted, atol=1e-6)
    found = jax.jacrev(lambda x: box_section(x, 0.0, 1.0, 1.0, 1.0))(x)
    np.testing.assert_allclose(
        found, jax.jacrev(optax.projections.projection_simplex)(x), atol=1e-6
    )
    x, w = jnp.array([1.2, 3.0, 0.7]), jnp.array([1.0, 2.0, 3.0])
    peer = jaxopt.projection.projection_box_section(x, (jnp.zeros(3), jnp.full(3, 0.8), w, 1.0))
    np.testing.assert_allclose(box_section(x, 0.0, 0.8, w, 1.0), peer, atol=1e-4)


def test_box_section_edges_by_hand():
    x, w = jnp.array([1.2, 3.0, 0.7]), jnp.array([1.0, 2.0, 3.0])
    for bound in (0.0, 0.8):  # all at one bound, the only point of the set
        found = box_section(x, 0.0, 0.8, w, 6 * bound)
        np.testing.assert_allclose(found, jnp.full(3, bound), atol=1e-7)
    for target in (-0.1, 4.9):
        assert jnp.isnan(box_section(x, 0.0, 0.8, w, target)).all()
    assert jnp.isnan(box_section(x, 1.0, 0.8, w, 1.0)).all()
    # A number without weight is clipped; equal numbers stay equal.
    found = box_section(jnp.array([2.0, 1.0, 1.0]), 0.0, 1.0, jnp.array([0.0, 1.0, 1.0]), 0.5)
    np.testing.assert_allclose(found, [1, 0.25, 0.25], rtol=1e-6)
    # No bound at all: a hyperplane.
    found = box_section(x, -jnp.inf, jnp.inf, w, 1.0)
    np.testing.assert_allclose(found, optax.projections.projection_hyperplane(x, w, 1.0), atol=1e-6)
    # A target that a whole piece of multipliers meets: y is at a vertex, and stays there.
    x = jnp.array([5.0, -5.0])
    found, jacobian = box_section(x, 0.0, 1.0, 1.0, 1.0), jax.jacobian(box_section)
    assert (found == jnp.array([1.0, 0.0])).all()
    assert (jacobian(x, 0.0, 1.0, 1.0, 1.0) == 0).all()


def test_box_section_in_float32_far_from_the_set():
    x = jnp.asarray(1e9 * np.random.default_rng(0).normal(size=50), jnp.float32)
    y = box_section(x, 0.0, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(jnp.sum(y), 1, rtol=1e-6)


def test_box_section_of_a_tree_is_that_of_its_numbers():
    x = {"a": jnp.array([[1.2, 3.0]]), "b": jnp.float32(0.7)}
    w = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.float32(3.0)}
    found = box_section(x, 0.0, 0.8, w, 1.0)
    flat = box_section(jnp.array([1.2, 3.0, 0.7]), 0.0, 0.8, jnp.array([1.0, 2.0, 3.0]), 1.0)
    assert (jnp.append(found["a"], found["b"]) == flat).all()
    with pytest.raises(ValueError, match=r"weights is .* accepted: a number, or the structure of"):
        bilevel.projection_box_section(x, 0.0, 0.8, {"a": w["a"]}, 1.0)


@pytest.mark.slow
def test_sparse_simplex_is_jaxopts_and_the_best_of_all_supports():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=6), jnp.float32)
    for k in (1, 2, 6):
        found = bilevel.projection_sparse_simplex(x, k, 0.8)
        wanted = jaxopt.projection.projection_sparse_simplex(x, k, value=0.8)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    best = min(
        float(
            jnp.sum(
                (optax.projections.projection_simplex(x[jnp.array([i, j])]) - x[jnp.array([i, j])])
                ** 2
            )
            + jnp.sum(x**2)
            - x[i] ** 2
            - x[j] ** 2
        )
        for i in range(6)
        for j in range(i)
    )
    found = bilevel.projection_sparse_simplex(x, 2)
    np.testing.assert_allclose(jnp.sum((found - x) ** 2), best, rtol=1e-5)


@pytest.mark.slow
def test_sparse_simplex_edges():
    x = jnp.array([1.0, 1.0, 1.0, -jnp.inf])
    assert (bilevel.projection_sparse_simplex(x, 2) == jnp.array([0.5, 0.5, 0, 0])).all()
    np.testing.assert_allclose(bilevel.projection_sparse_simplex(x, 4), [1 / 3] * 3 + [0])
    x = jnp.array([0.3, 0.2])
    assert (bilevel.projection_sparse_simplex(x, 2, 0.0) == 0).all()
    slopes = jax.jacobian(lambda s: bilevel.projection_sparse_simplex(x, 2, s))(0.0)
    assert (slopes == jnp.array([1.0, 0.0])).all()
    assert jnp.isnan(jax.jit(bilevel.projection_sparse_simplex, static_argnums=1)(x, 2, -1.0)).all()
    with pytest.raises(ValueError, match=r"scale is -1.0; accepted: scale >= 0"):
        bilevel.projection_sparse_simplex(x, 2, -1.0)
    with pytest.raises(ValueError, match=r"max_nonzeros is 3; accepted: 1 <= max_nonzeros <= 2"):
        bilevel.projection_sparse_simplex(x, 3)


def test_simplex_kl_is_a_step_of_mirror_descent():
    """y / z is exp(-step g) up to the scale."""
    z, g = jnp.array([0.2, 0.5, 0.3]), jnp.array([1.0, -2.0, 0.5])
    y = bilevel.projection_simplex_kl(jnp.log(z) - 0.1 * g)
    np.testing.assert_allclose(y, z * jnp.exp(-0.1 * g) / jnp.sum(z * jnp.exp(-0.1 * g)), rtol=1e-6)
    x = {"a": jnp.array([1e4, -jnp.inf]), "b": jnp.float32(1e4)}
    y = bilevel.projection_simplex_kl(x, 2.0)
    assert (y["a"] == jnp.array([1.0, 0.0])).all() and y["b"] == 1
    assert (bilevel.projection_simplex_kl(z, 0.0) == 0).all()


def test_second_order_cone_parts_by_hand():
    v = jnp.array([3.0, 4.0])
    for t, wanted in (
        (6.0, (1, 6)),
        (5.0, (1, 5)),
        (-5.0, (0, 0)),
        (-7.0, (0, 0)),
        (1.0, (0.6, 3)),
    ):
        share, height = wanted
        found = bilevel.projection_second_order_cone((v, t))
        np.testing.assert_allclose(found[0], share * v, rtol=1e-6)
        np.testing.assert_allclose(found[1], height, rtol=1e-6)
    for size in (1e30, 1e-30):
        found = bilevel.projection_second_order_cone((size * v, 0.0))
        np.testing.assert_allclose(found[0] / size, v / 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"x is .*; accepted: a pair \(v, t\)"):
        bilevel.projection_second_order_cone(v)


@pytest.mark.slow
def test_second_order_cone_has_a_derivative_at_its_axis():
    def both(x):
        return jnp.append(*bilevel.projection_second_order_cone((x[:2], x[2])))

    for t, wanted in ((1.0, jnp.eye(3)), (0.0, jnp.eye(3)), (-1.0, jnp.zeros((3, 3)))):
        assert (jax.jacobian(both)(jnp.array([0.0, 0.0, t])) == wanted).all()
        assert (jax.hessian(both)(jnp.array([0.0, 0.0, t])) == 0).all()


def test_psd_cone_derivatives_where_eigenvalues_repeat():
    """With X = Q diag(2, 2, -1, -1) Q', by the divided differences, and twice by differences."""
    random = np.random.default_rng(0)
    q, _ = np.linalg.qr(random.normal(size=(4, 4)))
    signs = np.array([1, 1, 0, 0])
    share = np.where(signs[:, None] == signs, signs, 2 / 3)
    with jax.enable_x64(True):
        x = jnp.asarray(q @ np.diag([2.0, 2, -1, -1]) @ q.T)
        d, e = (jnp.asarray(m + m.T) for m in random.normal(size=(2, 4, 4)))
        derivative = jax.jit(lambda x: jax.jvp(bilevel.projection_psd_cone, (x,), (d,))[1])
        np.testing.assert_allclose(derivative(x), q @ (share * (q.T @ d @ q)) @ q.T, atol=1e-12)
        found = jax.jvp(derivative, (x,), (e,))[1]
        difference = (derivative(x + 1e-6 * e) - derivative(x - 1e-6 * e)) / 2e-6
        assert jnp.abs(found).max() > 0.1
        np.testing.assert_allclose(found, difference, atol=1e-8)


@pytest.mark.slow
def test_psd_cone_edges():
    for x, wanted in ((jnp.eye(3), jnp.eye(3)), (-jnp.eye(3), 0), (jnp.zeros((3, 3)), 0)):
        np.testing.assert_allclose(bilevel.projection_psd_cone(x), jnp.zeros((3, 3)) + wanted)
        slopes = jax.jacrev(bilevel.projection_psd_cone)(x)
        assert jnp.isfinite(slopes).all()
    # The derivative of a small positive eigenvalue beside a large one keeps its digits.
    x = jnp.diag(jnp.array([1e6, 1e-3, -1e-3]))
    slope = jax.jvp(bilevel.projection_psd_cone, (x,), (jnp.ones((3, 3)),))[1]
    np.testing.assert_allclose(slope[1:, 1:], [[1, 0.5], [0.5, 0]], atol=1e-5)
    with pytest.raises(ValueError, match=r"x has the shape \[2, 3\]; accepted: \[2, 2\]"):
        bilevel.projection_psd_cone(jnp.ones((2, 3)))
