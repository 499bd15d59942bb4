"""What every projection must satisfy: the nearest point, its derivatives, batches, dtypes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from tests.bilevel.derivatives import assert_derivatives

RANDOM = np.random.default_rng(0)


class Set(NamedTuple):
    """A projection, where to test it, and the set written down independently."""

    projection: Callable[..., Any]
    x: Any  # outside of the set
    arguments: tuple[Any, ...]
    equations: Callable[..., Any]  # y, *arguments -> numbers, zero in the set
    bounds: Callable[..., Any]  # y, *arguments -> numbers, >= 0 in the set, concave in y
    euclidean: bool = True


A, B = RANDOM.normal(size=(2, 5)), RANDOM.normal(size=2)
G, H = RANDOM.normal(size=(4, 5)), RANDOM.normal(size=4)
MASSES = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.4, 0.2, 0.3])


def sums(p, a, b):
    return np.concatenate([p.sum(1) - a, p.sum(0) - b])


SETS = {
    "affine_set": Set(
        bilevel.projection_affine_set,
        RANDOM.normal(size=5),
        (A, B),
        lambda y, a, b: a @ y - b,
        lambda y, a, b: np.zeros(0),
    ),
    "birkhoff": Set(
        bilevel.projection_birkhoff,
        RANDOM.normal(size=(4, 4)),
        (),
        lambda p: sums(p, np.ones(4), np.ones(4)),
        lambda p: p.ravel(),
    ),
    "box_section": Set(
        bilevel.projection_box_section,
        np.array([1.2, 3.0, 0.7, -0.4, 0.3]),
        (np.full(5, -0.1), np.full(5, 0.8), np.array([1.0, 2.0, -3.0, 0.5, 0.7]), 0.4),
        lambda y, l, u, w, c: np.array([w @ y - c]),
        lambda y, l, u, w, c: np.concatenate([y - l, u - y]),
    ),
    "polyhedron": Set(
        bilevel.projection_polyhedron,
        2 * RANDOM.normal(size=5),
        (A, B, G, H),
        lambda y, a, b, g, h: a @ y - b,
        lambda y, a, b, g, h: h - g @ y,
    ),
    "psd_cone": Set(
        bilevel.projection_psd_cone,
        RANDOM.normal(size=(4, 4)),
        (),
        lambda y: (y - y.T).ravel(),
        lambda y: np.linalg.eigvalsh((y + y.T) / 2)[:1],
    ),
    "second_order_cone": Set(
        bilevel.projection_second_order_cone,
        (np.array([1.0, -2.0, 0.5]), np.array(0.7)),
        (),
        lambda y: np.zeros(0),
        lambda y: np.array([y[1] - np.linalg.norm(y[0])]),
    ),
    "simplex_kl": Set(
        bilevel.projection_simplex_kl,
        RANDOM.normal(size=4),
        (0.8,),
        lambda y, s: np.array([y.sum() - s]),
        lambda y, s: y,
        euclidean=False,
    ),
    "sparse_simplex": Set(
        lambda x, scale: bilevel.projection_sparse_simplex(x, 3, scale),
        np.array([0.9, 0.2, 1.1, -0.3, 0.8, 0.5]),
        (0.9,),
        lambda y, s: np.array([y.sum() - s, np.sort(y)[:-3].sum()]),
        lambda y, s: y,
    ),
    "transport": Set(
        bilevel.projection_transport,
        # Small, so that the plan is no vertex, whose derivative in S is zero.
        0.1 * RANDOM.normal(size=(3, 4)),
        MASSES,
        sums,
        lambda p, a, b: p.ravel(),
    ),
    "transport_kl": Set(
        bilevel.projection_transport_kl,
        RANDOM.normal(size=(3, 4)),
        MASSES,
        sums,
        lambda p, a, b: p.ravel(),
        euclidean=False,
    ),
}
CONVEX = [name for name, one in SETS.items() if name != "sparse_simplex"]
EUCLIDEAN = [name for name, one in SETS.items() if one.euclidean]
by_name = pytest.mark.parametrize("name", SETS)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def jitted(name):
    return jax.jit(SETS[name].projection)


def projected(name, x):
    """The projection in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jitted(name)(x, *SETS[name].arguments))


@by_name
def test_the_answer_is_in_the_set(name):
    one = SETS[name]
    y = projected(name, one.x)
    assert np.abs(flat(y) - flat(one.x)).max() > 1e-2
    np.testing.assert_allclose(one.equations(y, *one.arguments), 0, atol=1e-13)
    assert (one.bounds(y, *one.arguments) >= -1e-13).all()


@pytest.mark.parametrize("name", CONVEX)
def test_no_point_of_the_set_lies_further_along_the_gradient(name):
    """<gradient at y, z - y> >= 0 for all z of the set, which proves y where the set is convex.

    The z are other points' answers, half of them near and with other active constraints.
    """
    one = SETS[name]
    y, random = projected(name, one.x), np.random.default_rng(1)
    x = one.x
    if name == "psd_cone":
        x = (x + x.T) / 2
    gradient = flat(y) - flat(x) if one.euclidean else np.log(flat(y)) - flat(x)
    for size in (0.1, 0.1, 0.1, 0.1, 3, 3, 3, 3):
        other = jax.tree.map(lambda v, size=size: v + size * random.normal(size=v.shape), one.x)
        z = projected(name, other)
        assert np.abs(flat(z) - flat(y)).max() > 1e-3
        assert gradient @ (flat(z) - flat(y)) >= -1e-12


@pytest.mark.parametrize("name", EUCLIDEAN)
def test_a_point_of_the_set_stays(name):
    y = projected(name, SETS[name].x)
    np.testing.assert_allclose(flat(projected(name, y)), flat(y), atol=1e-13)


@by_name
def test_derivatives_in_all_arguments(name):
    one = SETS[name]
    assert_derivatives(jitted(name), one.x, *one.arguments, moved=_moved(one), twice=False)


@pytest.mark.slow
@by_name
def test_second_derivatives(name):
    """Those of a projection that is linear on pieces are zero."""
    one = SETS[name]
    assert_derivatives(jitted(name), one.x, *one.arguments, moved=_moved(one))


def _moved(one):
    """Tangents along which the set stays non-empty: totals of marginals agree."""
    random = np.random.default_rng(2)
    moved = jax.tree.map(lambda v: random.normal(size=np.shape(v)), (one.x, *one.arguments))
    if one.arguments is MASSES:
        moved = (moved[0], *(v - v.mean() for v in moved[1:]))
    return jax.tree.map(np.float64, moved)


@by_name
def test_batches_under_jit_are_one_at_a_time(name):
    one = SETS[name]
    scales = np.array([1.0, 0.5, 3.0])
    batch = jax.tree.map(lambda v: np.multiply.outer(scales, v), one.x)
    with jax.enable_x64(True):
        axes = (0, *(None for _ in one.arguments))
        found = jax.jit(jax.vmap(one.projection, in_axes=axes))(batch, *one.arguments)
    for i in range(3):
        alone = projected(name, jax.tree.map(lambda v, i=i: v[i], batch))
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda v, i=i: v[i], found)), flat(alone), atol=1e-12
        )


@by_name
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_dtypes_stay_and_are_near_float64(name, dtype):
    """Arithmetic is in float32: within its rounding of the exact answer to the same input."""
    one = SETS[name]
    x, *arguments = jax.tree.map(lambda v: jnp.asarray(v, dtype), (one.x, *one.arguments))
    found = jitted(name)(x, *arguments)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (x, *arguments))
        # Marginals in a narrow dtype differ in total.
        if name == "transport" or name == "transport_kl":
            wide = (*wide[:2], wide[2] * wide[1].sum() / wide[2].sum())
        exact = jitted(name)(*wide)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        flat(jax.tree.map(lambda v: v.astype(jnp.float32), found)),
        flat(exact),
        atol=max(2e-5, eps) * max(1, np.abs(flat(exact)).max()),
    )


@by_name
def test_nan_does_not_pass_for_an_answer(name):
    one = SETS[name]
    x = jax.tree.map(lambda v: np.where(np.arange(v.size).reshape(v.shape) == 0, np.nan, v), one.x)
    assert np.isnan(flat(projected(name, x))).any()


@by_name
def test_integers_and_wrong_shapes_are_not_accepted(name):
    one = SETS[name]
    whole = jax.tree.map(lambda v: np.ones(v.shape, np.int32), one.x)
    with pytest.raises(ValueError, match=rf"projection_{name}: .* is of int32; accepted: real fl"):
        one.projection(whole, *one.arguments)
    if one.arguments:
        wrong = (*one.arguments[:-1], np.ones((2, 3)))
        with pytest.raises(ValueError, match=rf"projection_{name}: .*\[2, 3\]; accepted: \["):
            one.projection(jax.tree.map(np.float32, one.x), *wrong)


def test_projected_gradient_takes_a_projection_as_an_operator():
    prox = bilevel.prox_from_projection(bilevel.projection_box_section)
    one = SETS["box_section"]
    x = jnp.asarray(one.x, jnp.float32)
    assert (prox(x, one.arguments, 0.3) == one.projection(x, *one.arguments)).all()
