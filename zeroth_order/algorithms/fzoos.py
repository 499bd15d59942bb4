"""FZooS: federated descent on gradients of surrogates, fitted to the queries of a trajectory.

n clients hold functions f_i; F is their mean. In a round each starts at the server's x, with its
own surrogate g_i, and surrogates s_i of all f_i and s of F, by random Fourier features, from the
round before. For t = 0 ... iterations - 1 (`zeroth_order.surrogates` has the equations)::

    fit the Gaussian process g_i to the `neighbours` queries that are nearest to x_i
    x_i = optimizer step along  grad g_i(x_i) + (grad s(x_i) - grad s_i(x_i)) / (t + 1)
    ask for f_i(x_i) and, but after the last step, for f_i at those of 100 points drawn within
        +-radius of x_i at which the gradient of g_i varies most, `active` of them

    server:  y = x - server_rate (x - mean over i of x_i),  x = y if F(y) < F(x) else x

Then each client asks for f_i at `exchanged` of 200 points drawn within half the mean distance of
coordinates that it came from x, chosen likewise, fits s_i to its nearest 500 queries, and sends its
weights; s has their mean. So a round moves x, x_i and `features` numbers for each client.

*Differences.* From the authors' code: (1) gradients of the process are its own; there, forward
differences, whose step of 1e-20 SciPy replaces by 1.5e-8. (2) The lengthscale is the likeliest of a
grid, 1e-2 to 1e3 in 21 steps, chosen at the start of a round; there, of 21 runs of L-BFGS a step.
(3) Points are chosen by the variance of the gradient of that process, summed over coordinates;
there, by a formula of an RBF kernel with second derivatives by one coordinate where the
cross-covariance has first ones, and with x added to each point that was fitted. (4) The features'
weights are regularised by 1e-6; there, by nothing. (5) A client keeps its last `memory` queries;
there, all. (6) The value at the server's y is asked for once, counted, and serves as the first of
the next round; there, it is asked for four times, of which two are counted. (7) Clients weigh the
same. As there, the optimizer starts anew each round.

*Cost.* A round: n (iterations + (iterations - 1) active + 1 + exchanged) losses, and for a client
iterations + 22 factorizations of `neighbours` points, one of 500, and about 1,000 features (d +
500) operations for s_i. Clients run one after the other. State: n memory (d + 1) + (n + 1) features
numbers.

*Reference.* Shu, Lin, Dai, Low, Federated Zeroth-Order Optimization using Trajectory-Informed
Surrogate Gradients, 2023 (arXiv:2308.04077); shuyao95/FZooS@27cd341, optimizers.py, settings.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order import surrogates
from zeroth_order.descent import Algorithm

STARTS, CANDIDATES, OFFERED, FITTED, NOISE = 10, 100, 200, 500, 1e-6
LENGTHSCALES = tuple(10 ** (-2 + i / 4) for i in range(21))


class Queries(NamedTuple):
    """The last queries of a client, in a ring."""

    points: jax.Array  # (memory, d)
    losses: jax.Array  # (memory,)
    total: jax.Array  # (), int32: queries up to now, those forgotten included


class FZooSState(NamedTuple):
    """The server's point, and what clients know."""

    x: jax.Array  # (d,), float32 or wider
    losses: jax.Array  # (n,): f_i(x)
    queries: Queries  # each leaf with an axis of clients in front
    own: jax.Array  # (n, features): weights of s_i
    shared: jax.Array  # (features,): weights of s
    key: jax.Array  # (), typed key: of the run
    step: jax.Array  # (), int32: rounds up to now


class FZooSInfo(NamedTuple):
    """What a round tells."""

    loss: jax.Array  # (): F at the point that is kept
    accepted: jax.Array  # (), bool: whether the server moved
    evaluations: jax.Array  # (), int32: losses of this round, of all clients


def fzoos(
    loss_fn: Callable[[jax.Array, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    iterations: int = 10,
    radius: float = 0.01,
    active: int = 5,
    exchanged: int = 50,
    neighbours: int = 150,
    memory: int = 1024,
    features: int = 10_000,
    server_rate: float = 1.0,
) -> Algorithm:
    """FZooS as a traced algorithm: `init(x, key, clients)`, and an `update` that is a round.

    `clients` is the batch: a tree with an axis of clients in front of every leaf.

    Args:
      loss_fn: (x, client) -> f_i(x), a scalar, where x is a vector.
      optimizer: of the clients; the authors take `optax.adam(0.01)`.
      iterations: local steps a round.
      radius: how far from x_i active queries may be, in each coordinate.
      active: such queries a step.
      exchanged: queries around the server's point a round.
      neighbours: queries that the process is fitted to, at most.
      memory: queries that a client keeps.
      features: random features, M.
      server_rate: learning rate of the server, eta.

    Raises:
      ValueError: radius or server_rate is not positive, active or exchanged is no number of points
        that are drawn, another argument is below 1, or neighbours above memory; in `init`, x is no
        vector of floats.

    >>> import jax, jax.numpy as jnp, optax, zeroth_order
    >>> def loss(x, centre):
    ...     return jnp.sum((x - centre) ** 2)
    >>> small = {"neighbours": 60, "memory": 200, "features": 300, "exchanged": 10}
    >>> federated = zeroth_order.fzoos(loss, optax.sgd(0.1), iterations=2, **small)
    >>> clients = jnp.array([[0.2, 0.4], [0.6, 0.8]])
    >>> state = federated.init(jnp.zeros(2), jax.random.key(0), clients)
    >>> first = state.losses.mean()
    >>> state, info = jax.jit(federated.update)(state, clients)
    >>> print(first.round(1), info.loss.round(1), info.evaluations)
    0.6 0.3 36
    """
    trees.check_positive("fzoos", radius=radius, server_rate=server_rate)
    counts = {"iterations": iterations, "neighbours": neighbours, "features": features}
    trees.check_at_least("fzoos", 1, active=active, exchanged=exchanged, **counts)
    trees.check_at_least("fzoos", neighbours, memory=memory)
    for name, asked, drawn in (("active", active, CANDIDATES), ("exchanged", exchanged, OFFERED)):
        if asked > drawn:
            raise ValueError(f"fzoos: {name} is {asked}; accepted: at most {drawn}.")

    protocol = _Protocol(loss_fn, optimizer, iterations, radius, active, exchanged, neighbours)

    def init(x: jax.Array, key: jax.Array, clients: Any) -> FZooSState:
        _check_vector(x)
        x = jnp.array(x, trees.accumulator_dtype(x))
        count = jax.tree.leaves(clients)[0].shape[0]
        zero = jnp.zeros((), jnp.int32)
        empty = Queries(jnp.zeros((memory, x.size), x.dtype), jnp.zeros(memory, x.dtype), zero)
        keys = jax.random.split(trees.named_key(key, "fzoos: start"), count)

        def begin(key: jax.Array, client: Any) -> Queries:
            xs = jnp.concatenate([x[None], _within(key, x, radius, STARTS)])
            return _asked(loss_fn, empty, xs, client)

        queries, none = jax.vmap(begin)(keys, clients), jnp.zeros(features, x.dtype)
        own = jnp.zeros((count, features), x.dtype)
        return FZooSState(x, queries.losses[:, 0], queries, own, none, jnp.array(key), zero)

    def update(state: FZooSState, clients: Any) -> tuple[FZooSState, FZooSInfo]:
        x, (count, size) = state.x, state.own.shape
        named = trees.named_key(state.key, "fzoos: features")
        waves = surrogates.random_features(named, x.size, size, x.dtype)
        key = jax.random.fold_in(trees.named_key(state.key, "fzoos"), state.step)
        walking, exploring = jax.random.split(key, (2, count))

        walk = functools.partial(_walk, protocol, waves, x)
        given = (state.shared - state.own, walking, state.queries, clients)
        ends, queries, lengthscales = jax.lax.map(lambda one: walk(*one), given)
        y = x - server_rate * jnp.mean(x - ends, axis=0)
        found = jax.vmap(lambda client: loss_fn(y, client))(clients).astype(x.dtype)
        queries = jax.vmap(_recorded, (0, None, 0))(queries, y[None], found[:, None])
        accepted = jnp.mean(found) < jnp.mean(state.losses)
        x, losses = jnp.where(accepted, y, x), jnp.where(accepted, found, state.losses)
        exchange = functools.partial(_exchange, protocol, waves, x)
        told = (exploring, ends, lengthscales, queries, clients)
        own, queries = jax.lax.map(lambda one: exchange(*one), told)

        asked = count * (iterations + (iterations - 1) * active + 1 + exchanged)
        info = FZooSInfo(jnp.mean(losses), accepted, jnp.int32(asked))
        step, shared = optax.safe_increment(state.step), jnp.mean(own, axis=0)
        return FZooSState(x, losses, queries, own, shared, state.key, step), info

    return Algorithm(init, update)


class _Protocol(NamedTuple):
    """Arguments of `fzoos`, for what a client does."""

    loss_fn: Callable[[jax.Array, Any], jax.Array]
    optimizer: optax.GradientTransformation
    iterations: int
    radius: float
    active: int
    exchanged: int
    neighbours: int


def _walk(
    protocol: _Protocol,
    waves: surrogates.Features,
    start: jax.Array,
    correction: jax.Array,
    key: jax.Array,
    queries: Queries,
    client: Any,
) -> tuple[jax.Array, Queries, jax.Array]:
    """A client's iterations from the server's point: their end, its queries and lengthscale."""
    near = _nearest(queries, start, protocol.neighbours)
    grid = jnp.asarray(LENGTHSCALES, start.dtype)
    lengthscale = surrogates.likeliest_lengthscale(*near, grid, NOISE)

    def advance(carry: Any, t: jax.Array, explore: bool) -> Any:
        x, state, queries = carry
        process = _fitted(queries, x, protocol.neighbours, lengthscale)
        slope = surrogates.process_slope(process, x)
        slope = slope + surrogates.features_slope(waves, correction, x) / (t + 1)
        updates, state = protocol.optimizer.update(slope, state, x)
        x = x + jnp.asarray(updates, x.dtype)
        xs = x[None]
        if explore:
            near = _within(jax.random.fold_in(key, t), x, protocol.radius, CANDIDATES)
            xs = jnp.concatenate([xs, _uncertain(process, near, protocol.active)])
        return x, state, _asked(protocol.loss_fn, queries, xs, client)

    carry, _ = jax.lax.scan(
        lambda carry, t: (advance(carry, t, True), None),
        (start, protocol.optimizer.init(start), queries),
        jnp.arange(protocol.iterations - 1),
    )
    end, _, queries = advance(carry, jnp.asarray(protocol.iterations - 1), False)
    return end, queries, lengthscale


def _exchange(
    protocol: _Protocol,
    waves: surrogates.Features,
    x: jax.Array,
    key: jax.Array,
    end: jax.Array,
    lengthscale: jax.Array,
    queries: Queries,
    client: Any,
) -> tuple[jax.Array, Queries]:
    """The weights of a client's surrogate around the server's point, and its queries."""
    near = _within(key, x, jnp.mean(jnp.abs(x - end)) / 2, OFFERED)
    process = _fitted(queries, x, protocol.neighbours, lengthscale)
    chosen = _uncertain(process, near, protocol.exchanged)
    queries = _asked(protocol.loss_fn, queries, chosen, client)
    known = _nearest(queries, x, min(FITTED, len(queries.losses)))
    weights = surrogates.feature_weights(waves, *known, NOISE)
    return jnp.where(jnp.all(jnp.isfinite(weights)), weights, 0), queries


def _asked(loss_fn: Any, queries: Queries, xs: jax.Array, client: Any) -> Queries:
    return _recorded(queries, xs, jax.vmap(lambda x: loss_fn(x, client))(xs))


def _fitted(queries: Queries, x: jax.Array, most: int, lengthscale: jax.Array) -> Any:
    return surrogates.matern_process(*_nearest(queries, x, most), lengthscale, NOISE)


def _recorded(queries: Queries, points: jax.Array, losses: jax.Array) -> Queries:
    places = (queries.total + jnp.arange(len(points))) % len(queries.losses)
    return Queries(
        queries.points.at[places].set(points),
        queries.losses.at[places].set(losses.astype(queries.losses.dtype)),
        queries.total + len(points),
    )


def _nearest(queries: Queries, x: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The queries nearest to x, nearest first: points, losses, and whether they are any.

    What is no number, of a client that ran away, is none.
    """
    squares = jnp.sum(jnp.square(queries.points - x), axis=1)
    finite = jnp.isfinite(squares) & jnp.isfinite(queries.losses)
    known = finite & (jnp.arange(len(squares)) < queries.total)
    index = jax.lax.top_k(jnp.where(known, -squares, -jnp.inf), most)[1]
    known = known[index]
    points = jnp.where(known[:, None], queries.points[index], x)
    return points, jnp.where(known, queries.losses[index], 0), known


def _within(key: jax.Array, x: jax.Array, radius: jax.Array | float, count: int) -> jax.Array:
    return x + radius * jax.random.uniform(key, (count, x.size), x.dtype, minval=-1, maxval=1)


def _uncertain(process: surrogates.Process, xs: jax.Array, count: int) -> jax.Array:
    """Those of the points at which the process' gradient varies most."""
    return xs[jax.lax.top_k(surrogates.process_slope_variances(process, xs), count)[1]]


def _check_vector(x: Any) -> None:
    shape, dtype = jnp.shape(x), jnp.result_type(x)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"fzoos: x has the shape {shape} and the dtype {dtype}; accepted: a vector of floats."
        )
