"""Consensus-based optimization: particles drift to a weighted mean, with noise as they are far.

With N particles x_i, losses f and standard normal z_i, of which each step draws new ones::

    w_i = exp(-alpha f(x_i)) / sum over j of exp(-alpha f(x_j)),    c = sum over i of w_i x_i
    x_i = x_i - drift dt (x_i - c) + sigma sqrt(dt) n_i
    n_i = ||x_i - c|| z_i  (isotropic)   or   (x_i - c) z_i, elementwise  (anisotropic)
    alpha = min(growth alpha, alpha_max)

The norm is over all leaves together. With `batch_size`, a step sees that many particles alone: c is
theirs and no other moves. An epoch is a permutation of the particles; what does not fill a last
batch of it waits for the next one.

The distance to c shrinks, in the mean of its logarithm, where sigma is small. Per coordinate that
does not depend on the number of coordinates d if noise is anisotropic; isotropic noise adds d terms
sigma^2 dt to the square of the norm, so that sigma must fall as 1 / sqrt(d), or particles fly off.

*Differences.* From CBXpy: (1) noise is anisotropic by default; there, isotropic. (2) A loss that is
no number weighs nothing; there, it spoils the mean. As there, coordinates stay within +-1e8, where
those that are no numbers are set.

*Cost.* N losses, which run together (vmap), or batch_size of them. State: N copies of the
parameters.

*Reference.* Pinnau et al., A consensus-based model for global optimization and its mean-field
limit, 2017 (arXiv:1604.05648); Carrillo et al., A consensus-based global optimization method for
high dimensional machine learning problems, 2021 (arXiv:1909.09249), for anisotropic noise and
batches; PdIPS/CBXpy@1ff2b4a, cbx/dynamics/cbo.py, pdyn.py, cbx/noise.py, cbx/scheduler.py.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order.consensus import gibbs_weights
from zeroth_order.descent import Algorithm

FAR = 1e8


class CBOState(NamedTuple):
    """Particles, and where their noise comes from."""

    particles: optax.Params  # like the parameters, with an axis of particles in front
    alpha: jax.Array  # (), float32 or wider: of the next step
    key: jax.Array  # (), typed key: of the run
    step: jax.Array  # (), int32: steps up to now


class CBOInfo(NamedTuple):
    """What a step tells, all of it about the particles before they moved."""

    loss: jax.Array  # (), float32 or wider: the least of those that were asked for
    consensus: optax.Params  # c, in the particles' dtypes
    alpha: jax.Array  # (), float32 or wider: by which they were weighed
    evaluations: jax.Array  # (), int32: losses of this step


def cbo(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    *,
    noise: Literal["anisotropic", "isotropic"] = "anisotropic",
    dt: float = 0.01,
    drift: float = 1.0,
    sigma: float = 5.1,
    alpha: float = 1.0,
    growth: float = 1.05,
    alpha_max: float = 1e5,
    batch_size: int | None = None,
    around: tuple[int, float] | None = None,
) -> Algorithm:
    """Consensus-based optimization as a traced algorithm, which owns the particles.

    `init` takes particles, a tree of floats with an axis of them in front, or, with `around`, one
    point. The answer is `info.consensus`.

    Args:
      loss_fn: (params, batch) -> a loss, or those of all examples, whose mean is taken.
      noise: "anisotropic" or "isotropic".
      dt: length of a step.
      drift: rate at which particles approach the consensus, lambda.
      sigma: size of the noise.
      alpha: inverse temperature of the first step.
      growth: what multiplies alpha after each step.
      alpha_max: where alpha stops.
      batch_size: particles that a step sees; all by default.
      around: (N, spread): `init` draws N particles around its point, of this standard deviation.

    Raises:
      ValueError: dt, alpha or alpha_max is not positive, drift or sigma is negative, growth or
        batch_size is below 1, noise or around is none of the accepted; in `init`, leaves are no
        floats, or differ in the number of particles, or there are fewer than batch_size.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> algorithm = zeroth_order.cbo(lambda x, batch: jnp.sum(x**2), around=(100, 1.0))
    >>> state = algorithm.init(jnp.ones(3), jax.random.key(0))
    >>> step = lambda state, _: algorithm.update(state, None)
    >>> state, info = jax.lax.scan(step, state, length=200)
    >>> print(bool(jnp.abs(info.consensus[-1]).max() < 0.05), info.evaluations[-1])
    True 100
    """
    trees.check_positive("cbo", dt=dt, alpha=alpha, alpha_max=alpha_max)
    trees.check_at_least("cbo", 0, drift=drift, sigma=sigma)
    trees.check_at_least("cbo", 1, growth=growth)
    if batch_size is not None:
        trees.check_at_least("cbo", 1, batch_size=batch_size)
    if noise not in ("anisotropic", "isotropic"):
        raise ValueError(f"cbo: noise is {noise!r}; accepted: 'anisotropic', 'isotropic'.")
    if around is not None:
        trees.check_at_least("cbo: around", 1, N=around[0])
        trees.check_at_least("cbo: around", 0, spread=around[1])

    def init(params: optax.Params, key: jax.Array) -> CBOState:
        _check_floats(params)
        if around is None:
            particles = jax.tree.map(jnp.array, params)
        else:
            particles = _scattered(params, trees.named_key(key, "cbo: around"), *around)
        _check_counts(particles, batch_size)
        first = jnp.asarray(
            min(alpha, alpha_max), trees.accumulator_dtype(*jax.tree.leaves(particles))
        )
        return CBOState(particles, first, jnp.array(key), jnp.zeros((), jnp.int32))

    def update(state: CBOState, batch: Any) -> tuple[CBOState, CBOInfo]:
        index = _members(state, batch_size)
        chosen = jax.tree.map(lambda x: x[index], state.particles)
        losses = jax.vmap(lambda p: jnp.mean(trees.promote(loss_fn(p, batch))))(chosen)
        weights = gibbs_weights(losses, state.alpha)
        exact = trees.promote(chosen)
        consensus = jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), exact)
        apart = jax.tree.map(jnp.subtract, exact, consensus)
        key = jax.random.fold_in(trees.named_key(state.key, "cbo"), state.step)
        kicks = _kicks(apart, key, noise)
        moved = jax.tree.map(
            lambda x, a, n: _bounded(x - drift * dt * a + sigma * dt**0.5 * n), exact, apart, kicks
        )
        particles = jax.tree.map(
            lambda x, new: x.at[index].set(new.astype(x.dtype)), state.particles, moved
        )
        consensus = jax.tree.map(lambda c, x: c.astype(x.dtype), consensus, chosen)
        info = CBOInfo(jnp.nanmin(losses), consensus, state.alpha, jnp.int32(losses.size))
        colder = jnp.minimum(growth * state.alpha, alpha_max).astype(state.alpha.dtype)
        return CBOState(particles, colder, state.key, optax.safe_increment(state.step)), info

    return Algorithm(init, update)


def _members(state: CBOState, batch_size: int | None) -> Any:
    """What indexes the particles that a step sees."""
    if batch_size is None:
        return slice(None)
    count = jax.tree.leaves(state.particles)[0].shape[0]
    epoch, place = jnp.divmod(state.step, count // batch_size)
    key = jax.random.fold_in(trees.named_key(state.key, "cbo: batches"), epoch)
    order = jax.random.permutation(key, count)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


def _normal(tree: Any, key: jax.Array) -> Any:
    """Standard normal, like the tree; each leaf's is a function of its path."""

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        named = trees.named_key(key, trees.path_string(path))
        return jax.random.normal(named, x.shape, x.dtype)

    return jax.tree.map_with_path(one, tree)


def _kicks(apart: Any, key: jax.Array, noise: str) -> Any:
    """n_i for every particle."""
    z = _normal(apart, key)
    if noise == "anisotropic":
        return jax.tree.map(jnp.multiply, apart, z)
    norms = jax.vmap(trees.norm)(apart)

    def one(z: jax.Array) -> jax.Array:
        return norms.astype(z.dtype).reshape((-1,) + (1,) * (z.ndim - 1)) * z

    return jax.tree.map(one, z)


def _scattered(params: optax.Params, key: jax.Array, count: int, spread: float) -> Any:
    centre = trees.promote(params)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), centre)
    scattered = jax.tree.map(lambda x, z: x + spread * z, copies, _normal(copies, key))
    return jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), scattered, params)


def _bounded(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.nan_to_num(x, nan=FAR), -FAR, FAR)


def _check_floats(params: optax.Params) -> None:
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(params)]
    if not dtypes or not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
        names = ", ".join(str(d) for d in dtypes) or "none"
        raise ValueError(f"cbo: the leaves have the dtypes {names}; accepted: floats, one or more.")


def _check_counts(particles: optax.Params, batch_size: int | None) -> None:
    counts = {x.shape[:1] for x in jax.tree.leaves(particles)}
    if len(counts) != 1 or counts == {()} or counts == {(0,)}:
        raise ValueError(
            f"cbo: the leaves' first axes are {sorted(counts)}; accepted: one number of particles, "
            f"in front of all leaves."
        )
    (count,) = counts.pop()
    if batch_size is not None and batch_size > count:
        raise ValueError(f"cbo: batch_size is {batch_size}; accepted: at most {count} particles.")
