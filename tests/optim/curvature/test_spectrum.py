"""Lanczos and its quadrature against dense eigenvalues; rate and momentum by hand and by a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import optim

SIZE = 12
PROBES = 64


def symmetric(values, seed=0):
    """A matrix with these eigenvalues, and its eigenvectors in columns."""
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return (vectors * values) @ vectors.T, vectors


def on_trees(matrix):
    """The matrix as an operator on {"a": (2, 3), "b": the rest}, and the tree of a vector."""

    def tree(vector):
        return {"a": vector[:6].reshape(2, 3), "b": vector[6:]}

    matrix = jnp.asarray(matrix)
    return lambda v: tree(matrix @ ravel_pytree(v)[0]), tree


def rows(basis):
    return np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(basis))


def tridiagonal(found):
    b = np.asarray(found.off_diagonal[:-1])
    return np.diag(np.asarray(found.diagonal)) + np.diag(b, 1) + np.diag(b, -1)


def test_all_steps_give_all_eigenvalues_and_their_weights():
    with jax.enable_x64(True):
        values = np.linspace(-3.0, 8.0, SIZE) ** 3
        matrix, vectors = symmetric(values)
        matvec, tree = on_trees(matrix)
        start = np.random.default_rng(1).normal(size=SIZE)
        found = jax.jit(lambda z: optim.lanczos(matvec, z, SIZE))(tree(jnp.asarray(start)))
        basis, t = rows(found.basis), tridiagonal(found)
        np.testing.assert_allclose(basis @ basis.T, np.eye(SIZE), atol=1e-14 * SIZE)
        np.testing.assert_allclose(basis @ matrix @ basis.T, t, atol=1e-13 * values.max())
        np.testing.assert_allclose(np.linalg.eigvalsh(t), values, atol=1e-12 * values.max())
        np.testing.assert_allclose(basis[0], start / np.linalg.norm(start), rtol=1e-14)

        def given(key, shape, dtype):
            del key
            z = tree(jnp.asarray(start, dtype))
            return z["a"] if shape == (2, 3) else z["b"]

        found = optim.spectral_quadrature(
            matvec, tree(jnp.zeros(SIZE)), jax.random.key(0), steps=SIZE, probe=given
        )
        np.testing.assert_allclose(found.nodes[0], values, atol=1e-12 * values.max())
        np.testing.assert_allclose(found.weights[0], (vectors.T @ start) ** 2 / SIZE, atol=1e-12)
        quadratic, _ = optim.spectral_sum(found, jnp.square)
        np.testing.assert_allclose(quadratic, start @ matrix @ matrix @ start, rtol=1e-12)


def test_few_steps_integrate_polynomials_exactly():
    """Gauss's rule of 3 nodes: z' A^k z for k <= 5, and not for k = 6."""
    with jax.enable_x64(True):
        matrix, _ = symmetric(np.linspace(-1.0, 2.0, SIZE))
        matvec, tree = on_trees(matrix)
        z = jax.random.normal(jax.random.key(1), (SIZE,))
        found = jax.jit(lambda z: optim.lanczos(matvec, z, 3))(tree(z))
        values, vectors = np.linalg.eigh(tridiagonal(found))
        errors = [
            abs(float(z @ np.linalg.matrix_power(matrix, k) @ z / (z @ z)) - vectors[0] ** 2 @ v)
            for k, v in enumerate(values**k for k in range(7))
        ]
        assert max(errors[:6]) < 1e-13 < 1e-3 < errors[6]


def test_basis_stays_orthonormal_in_float32():
    """With eigenvalues that converge early, where the plain recurrence loses everything."""
    values = jnp.geomspace(1e-6, 1.0, 200) ** 2
    found = jax.jit(lambda z: optim.lanczos(lambda v: values * v, z, 60))(jnp.ones(200))
    basis = np.asarray(found.basis, np.float64)
    # A dozen roundings of 6e-8.
    assert np.abs(basis @ basis.T - np.eye(60)).max() < 1e-6
    assert found.diagonal.dtype == jnp.float32
    assert np.linalg.eigvalsh(tridiagonal(found)).max() == pytest.approx(1.0, rel=1e-5)


def test_top_eigenpairs_of_a_dense_matrix():
    with jax.enable_x64(True):
        values = np.concatenate([np.linspace(-1.0, 1.0, SIZE - 2), [3.0, 7.0]])
        matrix, vectors = symmetric(values)
        matvec, tree = on_trees(matrix)
        start = tree(jax.random.normal(jax.random.key(0), (SIZE,)))
        find = jax.jit(lambda z: optim.top_eigenpairs(matvec, z, 2, steps=9))
        found = find(start)
        np.testing.assert_allclose(found.values, [7.0, 3.0], atol=1e-5)
        pairs = rows(found.vectors)
        np.testing.assert_allclose(np.abs(pairs @ vectors[:, [-1, -2]]), np.eye(2), atol=1e-3)
        for x, value, residual in zip(pairs, found.values, found.residuals, strict=True):
            assert np.linalg.norm(x) == pytest.approx(1.0, rel=1e-12)
            left = np.linalg.norm(matrix @ x - float(value) * x)
            np.testing.assert_allclose(residual, left, rtol=1e-6)
            assert np.abs(values - value).min() <= residual


@pytest.mark.slow
def test_a_start_of_two_eigenvectors_sees_two_eigenvalues():
    """What is missing is nan or of no weight, and nothing is not finite."""
    values = jnp.array([1.0, 0.0, 0.0, 5.0, 5.0, -2.0])
    start = jnp.array([0.0, 3.0, 0.0, 4.0, 0.0, 0.0])
    found = jax.jit(lambda z: optim.lanczos(lambda v: values * v, z, 4))(start)
    assert found.off_diagonal[1:].tolist() == [0.0, 0.0, 0.0]
    assert jnp.isfinite(found.basis).all() and not found.basis[2:].any()
    pairs = optim.top_eigenpairs(lambda v: values * v, start, 3, steps=4)
    np.testing.assert_allclose(pairs.values, [5.0, 0.0, jnp.nan], atol=1e-6)
    signless = abs(pairs.vectors[:2])
    np.testing.assert_allclose(signless, jnp.eye(6)[jnp.array([3, 1])], atol=1e-6)
    assert not pairs.vectors[2].any() and jnp.isnan(pairs.residuals[2])
    found = optim.spectral_quadrature(
        lambda v: values * v,
        start,
        jax.random.key(0),
        steps=4,
        probe=lambda *_: start + jnp.array([1.0, 0, 0, 0, 0, 0]),
    )
    assert (found.weights > 0).sum() == 3
    determinant, _ = optim.spectral_sum(found, lambda t: jnp.log(t + 1))
    np.testing.assert_allclose(determinant, 16 * np.log(6) + np.log(2), rtol=1e-5)


def test_an_operator_that_is_zero_or_tiny():
    zero = optim.top_eigenpairs(lambda v: 0 * v, jnp.ones(4), 2, steps=3)
    np.testing.assert_array_equal(zero.values, [0.0, jnp.nan])
    np.testing.assert_allclose(zero.vectors[0], 0.5)
    values = jnp.array([1e-12, 3e-12, 3e-12, 3e-12])
    tiny = optim.top_eigenpairs(lambda v: values * v, jnp.ones(4), 3, steps=3)
    np.testing.assert_allclose(tiny.values, [3e-12, 1e-12, jnp.nan], rtol=1e-5)


VALUES = np.concatenate([np.linspace(0.5, 1.5, 30), [4.0, 5.0, 9.0]])


@functools.cache
def quadrature(probe):
    matrix, _ = symmetric(VALUES)
    matrix = jnp.asarray(matrix, jnp.float32)

    @jax.jit
    def find(key):
        params = jnp.zeros(len(VALUES))
        return optim.spectral_quadrature(
            lambda v: matrix @ v, params, key, steps=15, probes=PROBES, probe=probe
        )

    return find(jax.random.key(0))


@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal])
def test_trace_and_determinant_are_within_five_standard_errors(probe):
    found = quadrature(probe)
    for function, expected in (
        (lambda t: t, VALUES.sum()),
        (jnp.log, np.log(VALUES).sum()),
        (jnp.ones_like, len(VALUES)),
    ):
        estimate, error = optim.spectral_sum(found, function)
        # At least the rounding of 15 nodes.
        assert abs(estimate - expected) < 5 * max(float(error), 1e-6 * expected)
        # A probe's variance is at most 2 |f(A)|^2, and just that for normal ones.
        squares = np.sum(np.square(function(jnp.asarray(VALUES, jnp.float32))))
        assert error < 1.3 * np.sqrt(2 * squares / PROBES)
    one = found._replace(nodes=found.nodes[:1], weights=found.weights[:1])
    assert jnp.isnan(optim.spectral_sum(one, jnp.log)[1])


def test_trace_of_a_diagonal_matrix_needs_one_probe_of_signs():
    """z' D z is the trace whatever the signs."""
    matvec = functools.partial(jnp.multiply, jnp.asarray(VALUES, jnp.float32))
    found = optim.spectral_quadrature(
        matvec, jnp.zeros(len(VALUES)), jax.random.key(1), steps=5, probes=2
    )
    trace, error = optim.spectral_sum(found, lambda t: t)
    np.testing.assert_allclose(trace, VALUES.sum(), rtol=1e-6)
    assert error < 1e-5


def test_density_is_near_the_spectrums_in_total_variation():
    grid, width = jnp.linspace(-1.0, 11.0, 1201), 0.3
    found = optim.spectral_density(quadrature(jax.random.rademacher), grid, width)
    gaps = (np.asarray(grid)[:, None] - VALUES) / width
    expected = np.exp(-(gaps**2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))
    step = float(grid[1] - grid[0])
    assert np.sum(np.asarray(found)) * step == pytest.approx(1.0, rel=1e-4)
    distance = np.abs(np.asarray(found) - expected).sum() * step / 2
    # A probe gives an isolated eigenvalue, of 3 % of the mass, that times 1 +- 1.4: of 64 probes
    # 3 * 3 % * 1.4 / 8 or 1.6 %, and as much again from the bulk.
    assert distance < 0.05
    # The Ritz values without their weights are far from it.
    nodes = quadrature(jax.random.rademacher)
    even = nodes._replace(weights=jnp.full_like(nodes.weights, 1 / 15))
    unweighted = np.abs(np.asarray(optim.spectral_density(even, grid, width)) - expected)
    assert unweighted.sum() * step / 2 > 0.1


@pytest.mark.slow
def test_probes_are_signs_that_differ_by_leaf_and_by_probe():
    seen = []

    def matvec(v):
        seen.append(v)
        return v

    params = {"w": jnp.zeros((30, 10), jnp.bfloat16), "v": jnp.zeros((30, 10)), "n": jnp.arange(9)}
    quadratures = []
    with jax.disable_jit():
        for key in (0, 1):
            quadratures.append(
                optim.spectral_quadrature(matvec, params, jax.random.key(key), steps=1, probes=2)
            )
    assert quadratures[0].dimension == 600
    signs = [np.asarray(v[name]) for v in seen for name in ("w", "v")]
    assert len(signs) == 8 and all(v["w"].dtype == jnp.float32 for v in seen)
    assert not any(v["n"].any() for v in seen)
    flat = np.stack([s.ravel() for s in signs]) * np.sqrt(600)
    np.testing.assert_allclose(np.abs(flat), 1.0, rtol=1e-5)
    # Means and correlations of 300 signs: five deviations of 1 / sqrt(300).
    assert np.abs(flat.mean(1)).max() < 5 / np.sqrt(300)
    assert np.abs(flat @ flat.T / 300 - np.eye(8)).max() < 5 / np.sqrt(300)


def test_spectrum_of_a_networks_hessian():
    """Through the operator, with bfloat16 and integer leaves, against its dense eigenvalues."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
        "power": jnp.array(2),
        "scale": jnp.asarray(rng.normal(size=2), jnp.float32),
    }
    inputs = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)

    def loss(p):
        outputs = jnp.tanh(inputs @ p["kernel"]) @ p["scale"]
        return jnp.mean(outputs ** p["power"].astype(jnp.float32))

    @jax.jit
    def both(params):
        matvec = optim.hessian_operator(loss, params)
        found = optim.spectral_quadrature(matvec, params, jax.random.key(0), steps=8)
        floats = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
        _, unravel = ravel_pytree(floats)
        columns = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(9))
        return found.nodes[0], columns

    with jax.numpy_dtype_promotion("strict"):
        nodes, columns = both(params)
    expected = np.delete(np.delete(np.asarray(columns), 6, 0), 6, 1)  # without the integer
    np.testing.assert_allclose(np.asarray(columns)[6], 0.0)
    np.testing.assert_allclose(
        nodes, np.linalg.eigvalsh(expected), atol=3e-6 * np.abs(expected).max()
    )


def nodes_and_weights(nodes, weights):
    return optim.SpectralQuadrature(jnp.array(nodes), jnp.array(weights), jnp.float32(10.0))


def test_rate_and_momentum_by_hand():
    """The bulk node 0.01 has most of the weight; magnitudes count; a node without weight not."""
    found = nodes_and_weights([[0.01, -1.0, 16.0, 0.0]], [[0.8, 0.1, 0.1, 0.0]])
    least = optim.heavy_ball_from_spectrum(found)
    # u = 1, L = 16: rate (2 / 5)^2, momentum (3 / 5)^2
    np.testing.assert_allclose(least, (0.16, 0.36, 16.0, 1.0), rtol=1e-6)
    # Without a bulk node, the smallest is the smallest.
    spread = nodes_and_weights([[0.01, -1.0, 16.0, 0.0]], [[0.4, 0.3, 0.3, 0.0]])
    assert optim.heavy_ball_from_spectrum(spread).smallest == pytest.approx(0.01)
    median = optim.heavy_ball_from_spectrum(found, smallest="median")
    np.testing.assert_allclose(median, least, rtol=1e-6)
    # One node alone: no momentum, rate 1 / L.
    alone = optim.heavy_ball_from_spectrum(nodes_and_weights([[4.0]], [[1.0]]))
    np.testing.assert_allclose(alone, (0.25, 0.0, 4.0, 4.0), rtol=1e-6)
    # Two probes: the largest L, the mean of 1 and 4 for u.
    two = nodes_and_weights([[0.0, 1.0, 9.0], [0.0, 4.0, 16.0]], [[0.8, 0.1, 0.1]] * 2)
    assert optim.heavy_ball_from_spectrum(two)[2:] == (16.0, 2.5)


def test_rate_and_momentum_are_polyaks_for_a_quadratic():
    """Heavy ball contracts by sqrt(momentum) a step, nearly; a tenth less rate is slower."""
    with jax.enable_x64(True):
        values = jnp.linspace(1.0, 100.0, 20)
        found = optim.spectral_quadrature(
            lambda v: values * v, jnp.zeros(20), jax.random.key(0), steps=20
        )
        best = optim.heavy_ball_from_spectrum(found)
        np.testing.assert_allclose(best[2:], (100.0, 1.0), rtol=1e-9)

        @jax.jit
        def distance(rate, momentum):
            def step(carry, _):
                x, previous = carry
                return (x - rate * values * x + momentum * (x - previous), x), None

            return jnp.linalg.norm(jax.lax.scan(step, (jnp.ones(20),) * 2, length=200)[0][0])

        # The double root of each mode adds a factor of steps.
        reached = distance(best.learning_rate, best.momentum)
        assert reached < 200 * 20 * best.momentum**100
        assert distance(0.9 * best.learning_rate, best.momentum) > 10 * reached


def test_arguments_out_of_range_are_named():
    identity, params = lambda v: v, {"w": jnp.ones(3), "n": jnp.arange(4)}
    quadrature = functools.partial(optim.spectral_quadrature, identity, params, jax.random.key(0))
    for steps in (0, 4):
        accepted = f"steps is {steps}; accepted: 1 <= steps <= 3, the number of floating"
        with pytest.raises(ValueError, match="lanczos: " + accepted):
            optim.lanczos(identity, jnp.ones(3), steps)
        with pytest.raises(ValueError, match="top_eigenpairs: " + accepted):
            optim.top_eigenpairs(identity, jnp.ones(3), 1, steps=steps)
        with pytest.raises(ValueError, match="spectral_quadrature: " + accepted):
            quadrature(steps=steps)
    for count in (0, 3):
        message = rf"top_eigenpairs: count is {count}; accepted: 1 <= count <= steps, here 2"
        with pytest.raises(ValueError, match=message):
            optim.top_eigenpairs(identity, jnp.ones(3), count, steps=2)
    with pytest.raises(
        ValueError, match=r"spectral_quadrature: probes is 0; accepted: probes >= 1"
    ):
        quadrature(steps=2, probes=0)
    found = nodes_and_weights([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"spectral_density: width is 0; accepted: width > 0"):
        optim.spectral_density(found, jnp.ones(2), 0)
    with pytest.raises(ValueError, match=r"smallest is 'mean'; accepted: 'minimum', 'median'"):
        optim.heavy_ball_from_spectrum(found, smallest="mean")
    with pytest.raises(ValueError, match=r"hessian_operator: the vector is"):
        optim.lanczos(optim.hessian_operator(lambda w: w["a"] ** 2, {"a": 1.0}), jnp.ones(2), 1)
