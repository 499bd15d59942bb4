"""A function's derivatives against finite differences, in every mode and twice."""

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-6  # of a central difference; its error is about STEP**2 and eps / STEP


def assert_derivatives(function, *arguments, moved=None, within=1e-7, twice=True):
    """In float64: jvp is the difference, vjp its transpose, jit and vmap alike; so for the vjp.

    Args:
      function: of trees of floats, to a tree of floats, smooth in a ball of some STEP around.
      arguments: NumPy or JAX arrays, or trees of them.
      moved: tangents like the arguments; random ones by default.
      within: error allowed, relative to the largest entry of the derivative, at least 1.
      twice: whether the second derivative is checked too.
    """
    random = np.random.default_rng(0)
    function = jax.jit(function)  # without it every call compiles each of its loops anew
    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arguments)
        if moved is None:
            moved = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), arguments)
        weights = jax.tree.map(
            lambda x: jnp.asarray(random.normal(size=x.shape)), function(*arguments)
        )
        _first(function, arguments, moved, weights, within)
        if twice:

            @jax.jit
            def pulled(*arguments):
                return jax.vjp(function, *arguments)[1](weights)

            _first(pulled, arguments, moved, arguments, within)


def _first(function, arguments, moved, weights, within):
    def at(step):
        return function(*jax.tree.map(lambda x, d: x + step * d, arguments, moved))

    difference = jax.tree.map(lambda u, v: (u - v) / (2 * STEP), at(STEP), at(-STEP))
    pushed = jax.jvp(function, arguments, moved)[1]
    _close(pushed, difference, within)
    pull = jax.vjp(function, *arguments)[1](weights)
    # One number for both modes: weights . J moved.
    np.testing.assert_allclose(_vdot(pull, moved), _vdot(weights, pushed), rtol=1e-9, atol=1e-9)
    pushes = jax.jit(jax.vmap(lambda scale: jax.jvp(function, arguments, _times(scale, moved))[1]))
    _close(jax.tree.map(lambda x: x[1], pushes(jnp.array([0.0, 1.0]))), pushed, 1e-10)


def _times(scale, tree):
    return jax.tree.map(lambda x: scale * x, tree)


def _vdot(x, y):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, x, y)))


def _close(found, wanted, within):
    for u, v in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(u, v, atol=within * max(1, np.abs(v).max(initial=0)), rtol=0)
