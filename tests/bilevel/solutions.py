"""Solutions against closed forms, by value and derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def direct(matvec, b, **_):
    """The solution by the whole matrix; it compiles faster than `optim.dense_solve`."""
    flat, unravel = ravel_pytree(b)
    a = jax.jacfwd(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.zeros_like(flat))
    return unravel(jnp.linalg.solve(a, flat)), None


def assert_solution(attached, exact, *arguments, twice=False):
    """It has the value, jvp and gradient of `exact`, and if `twice` the second derivative."""
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, arguments)
        random = np.random.default_rng(1)
        moved = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), arguments)
        weights = jax.tree.map(
            lambda x: jnp.asarray(random.normal(size=x.shape)), exact(*arguments)
        )

        def modes(function, arguments):
            def loss(*arguments):
                out = function(*arguments)
                terms = jax.tree.map(lambda w, o: jnp.vdot(w, o) + jnp.sum(o**2), weights, out)
                return sum(jax.tree.leaves(terms))

            gradient = jax.grad(loss, argnums=tuple(range(len(arguments))))
            if twice:
                return jax.jvp(lambda *a: (function(*a), gradient(*a)), arguments, moved)
            return jax.jvp(function, arguments, moved), gradient(*arguments)

        found = jax.jit(functools.partial(modes, attached))(arguments)
        wanted = jax.jit(functools.partial(modes, exact))(arguments)
        for u, v in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(u, v, rtol=1e-8, atol=1e-8)
