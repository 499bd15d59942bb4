"""Newton-Schulz: images of singular values, and forms that must agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim.solvers.newton_schulz import (
    DION,
    STANDARD,
    gram_newton_schulz,
    newton_schulz,
    polar_express,
    polynomials,
    symmetric_product,
)

NAMES = ("standard", "dion", "polar_express", "aol")


def matrix(m, n, condition, dtype=np.float64):
    """A matrix with singular values spaced evenly in their logarithms, the largest 1."""
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.normal(size=(m, m)))[0], np.linalg.qr(rng.normal(size=(n, m)))[0]
    return ((u * np.geomspace(1, 1 / condition, m)) @ v.T).astype(dtype)


def image(rows, low):
    """Least and largest value to which the rows take [low, 1]."""
    s = np.geomspace(low, 1, 200_001)
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return s.min(), s.max()


def keywords(name):
    found = polynomials("muon", name)
    return {
        "coefficients": found.rows,
        "safety": found.safety,
        "scale_rows": found.scale_rows,
    }


@pytest.mark.parametrize(
    ("name", "low", "expected"),
    [
        ("standard", 1e-3, (0.471, 1.202)),
        ("standard", 3e-3, (0.682, 1.202)),
        ("dion", 1e-3, (0.475, 1.145)),
        ("dion", 3e-3, (0.978, 1.145)),
        ("polar_express", 1e-3 / 1.02, (0.847, 1.141)),
        ("polar_express", 1e-3, (0.859, 1.141)),
        ("polar_express", 3e-3, (0.859, 1.141)),
        ("aol", 1e-3, (0.147, 1.050)),
        ("aol", 3e-3, (0.426, 1.050)),
    ],
)
def test_images_of_singular_values(name, low, expected):
    np.testing.assert_allclose(image(polynomials("muon", name).rows, low), expected, atol=6e-4)


def test_polar_express_is_as_published():
    published = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    np.testing.assert_allclose(polar_express(), published, rtol=1e-11)


def test_polar_express_without_safety_or_cushion_converges_to_one():
    """Its rows end in the quintic of third order at 1."""
    rows = polar_express(12, safety=1.0, cushion=0.0)
    np.testing.assert_allclose(image(rows, 1e-3), (1, 1), atol=1e-12)
    np.testing.assert_allclose(rows[-1], (15 / 8, -10 / 8, 3 / 8), rtol=1e-9)


def test_best_quintic_equioscillates():
    """Four extrema of one size and alternating sign: no other quintic is nearer to 1."""
    ((a, b, c),) = polar_express(1, smallest=0.05, cushion=0.0)
    s = np.linspace(0.05, 1, 100_001)
    error = a * s + b * s**3 + c * s**5 - 1
    inner = np.flatnonzero((error[1:-1] - error[:-2]) * (error[2:] - error[1:-1]) < 0) + 1
    extrema = error[[0, *inner, -1]]
    assert len(extrema) == 4
    np.testing.assert_allclose(extrema, extrema[0] * np.array([1, -1, 1, -1]), rtol=1e-6)


@pytest.mark.parametrize("iterate", [newton_schulz, gram_newton_schulz])
def test_singular_vectors_stay_and_singular_values_follow_the_rows(iterate):
    with jax.enable_x64(True):
        x = matrix(6, 15, 100)
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        s = s / (1.02 * np.linalg.norm(s) + 1e-3)
        for a, b, c in DION:
            s = a * s + b * s**3 + c * s**5
        ours = iterate(jnp.asarray(x), DION, safety=1.02, eps=1e-3)
        np.testing.assert_allclose(ours, (u * s) @ vt, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_forms_and_symmetric_blocks_agree_in_float64(name):
    with jax.enable_x64(True):
        x = jnp.stack([matrix(12, 40, 1e2), 1e-5 * matrix(12, 40, 10)])
        plain = newton_schulz(x, **keywords(name))
        np.testing.assert_allclose(newton_schulz(x, levels=2, **keywords(name)), plain, atol=1e-12)
        for restarts in ((), None):
            gram = gram_newton_schulz(x, levels=1, restarts=restarts, **keywords(name))
            np.testing.assert_allclose(gram, plain, atol=1e-9)


@pytest.mark.parametrize("iterate", [newton_schulz, gram_newton_schulz])
@pytest.mark.parametrize("name", ["polar_express", "aol"])
def test_a_tall_matrix_is_the_transpose_of_a_wide_one(iterate, name):
    x = jnp.asarray(matrix(4, 9, 10, np.float32))
    tall = iterate(x.T, eps=1e-3, levels=1, **keywords(name))
    np.testing.assert_allclose(tall.T, iterate(x, eps=1e-3, levels=1, **keywords(name)))


def test_aol_bounds_the_norm_by_scaling_rows():
    """One row that is the identity shows x as the first step sees it."""
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(5, 8, 10))
        scaled = newton_schulz(x, ((1.0, 0.0, 0.0),), scale_rows=True)
        expected = x / jnp.sqrt(jnp.abs(x @ x.T).sum(1, keepdims=True))
        np.testing.assert_allclose(scaled, expected, rtol=1e-12)
        assert np.linalg.norm(scaled, 2) <= 1
        assert np.linalg.norm(scaled, 2) > np.linalg.norm(x, 2) / np.linalg.norm(x)


@pytest.mark.parametrize("iterate", [newton_schulz, gram_newton_schulz])
@pytest.mark.parametrize("name", ["standard", "aol"])
def test_zeros_stay_zeros(iterate, name):
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jnp.zeros((2, 4, 6), dtype).at[0, 1, 1].set(1e-3)
        out = iterate(x, **keywords(name))
        assert out.dtype == dtype and np.isfinite(out.astype(jnp.float32)).all()
        assert not out[1].any() and out[0, 1, 1] > 0.6


@pytest.mark.parametrize("name", ["polar_express", "aol"])
def test_gram_form_in_bfloat16_stays_bounded_thanks_to_its_restart(name):
    """The plain form's largest singular values are 1.141 and 1.075."""
    x = jnp.asarray(matrix(128, 128, 1e3), jnp.bfloat16)

    def largest(**arguments):
        out = jax.jit(functools.partial(gram_newton_schulz, **keywords(name), **arguments))(x)
        return np.linalg.norm(np.asarray(out, np.float64), 2)

    assert largest() < 1.2
    assert largest(restarts=()) > 2


def test_symmetric_product_halves_down_to_odd_sizes():
    x = jnp.asarray(matrix(12, 20, 3, np.float32))
    for levels in range(5):  # 12, 6, 3: a third level finds no half
        ours = symmetric_product(x, x, levels)
        np.testing.assert_allclose(ours, x @ x.T, atol=1e-6)
        assert bool((ours[:6, 6:] == ours[6:, :6].T).all()) or levels == 0


@pytest.mark.parametrize(
    ("coefficients", "phrase"),
    [
        (
            "keller",
            "coefficients is 'keller'; accepted: 'standard', 'dion', 'polar_express', 'aol'",
        ),
        ((), r"coefficients is \(\); accepted: at least one row"),
        (((1.0, 2.0),), "at least one row"),
        ((1.0, 2.0, 3.0), "at least one row"),
    ],
)
def test_wrong_coefficients_are_refused(coefficients, phrase):
    with pytest.raises(ValueError, match=f"muon: .*{phrase}"):
        polynomials("muon", coefficients)


def test_rows_are_taken_as_they_are():
    assert polynomials("muon", list(STANDARD[:2])) == (tuple(STANDARD[:2]), 1.0, False)
