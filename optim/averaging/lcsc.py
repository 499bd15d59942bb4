"""LCSC: weights of saved checkpoints by evolutionary search, from the values of a metric alone.

The candidates are weights `a` of n checkpoints with the sum 1; they may be negative. Of the
population, which begins with exponential weights of several decays, two parents are drawn from the
better half, and their child is evaluated and takes the place of the worst if it is better::

    c_i   = one parent's a_i or the other's, with equal chances         crossover
    c_i  += (mutation / n) z_i,   z ~ N(0, I)                           mutation
    c    += (1 - sum(c)) / n                                            sum of 1
    value = evaluate(sum_i c_i p_i)                                     less is better

*Differences.* The paper searches the coefficients by evolution; its authors' search code is not
public, and of its text the abstract was at hand. Exponential weights at the start, crossover,
mutation, negative weights and a sum of 1 are as remembered; how parents are drawn, the noise and
its size, one child at a time, and the return to a sum of 1 (the nearest such point; a division by
the sum would blow up where it is close to 0) are our own.

*Cost.* One evaluation of a metric a candidate, and one pass over all n checkpoints, which are in
memory together with one combination. A host algorithm: `evaluate` is called outside of jit.

*Reference.* Liu et al., Linear Combination of Saved Checkpoints Makes Consistency and Diffusion
Models Better, 2024 (arXiv:2404.02241); imagination-research/LCSC@34ead5b2a51a, which has models and
no search.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optim import trees
from optim.averaging.merging import combine_checkpoints, ema_weights

_DECAYS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.999)


class LcscInfo(NamedTuple):
    """What `lcsc` has tried, in that order."""

    value: float  # the best
    values: np.ndarray  # (evaluations,) float64, of every candidate; inf where it was not finite
    weights: np.ndarray  # (evaluations, n) float64, the candidates


def lcsc(
    checkpoints: Sequence[Any],
    evaluate: Callable[[Any], float],
    key: jax.Array,
    *,
    evaluations: int = 200,
    decays: Sequence[float] = _DECAYS,
    mutation: float = 0.5,
) -> tuple[jax.Array, LcscInfo]:
    """Searches for the weights with which checkpoints combine to the least value of a metric.

    Args:
      checkpoints: n trees of one structure, oldest first, in a list or tuple.
      evaluate: parameters -> the metric, a number; less is better. Not finite counts as worst.
      key: a typed key.
      evaluations: calls of evaluate, those of the first population among them.
      decays: of the exponential weights that are the first population, two or more; 0 is the last
        checkpoint alone, close to 1 the uniform mean.
      mutation: deviation of the noise on every weight, in units of 1 / n.

    Returns:
      (weights, info): (n,) the best weights, for `combine_checkpoints`, and all that was tried.

    Raises:
      ValueError: there are fewer than two checkpoints or decays, or fewer evaluations than decays,
        or mutation is negative.

    >>> import jax, jax.numpy as jnp, optim
    >>> checkpoints = [jnp.array([0.0]), jnp.array([1.0])]  # 3 is the best: -2 of one, 3 of another
    >>> weights, info = optim.lcsc(checkpoints, lambda p: float((p[0] - 3) ** 2), jax.random.key(0))
    >>> bool(info.value < 1e-3), round(float(weights.sum()), 3)
    (True, 1.0)
    """
    count, size = len(checkpoints), len(decays)
    _check(count, evaluations, size, mutation)
    combine = jax.jit(combine_checkpoints)

    def measure(candidate: np.ndarray) -> float:
        value = float(evaluate(combine(checkpoints, jnp.asarray(candidate, float))))
        return value if math.isfinite(value) else math.inf

    tried = [np.asarray(ema_weights(count, decay), np.float64) for decay in decays]
    values = [measure(candidate) for candidate in tried]
    population = list(range(size))  # of candidates by number
    for draw in _draws(key, evaluations - size, max(2, math.ceil(size / 2)), count):
        population.sort(key=lambda number: values[number])
        first, second = (tried[population[parent]] for parent in draw.parents)
        child = np.where(draw.mask, first, second) + mutation / count * draw.noise
        tried.append(child + (1 - child.sum()) / count)
        values.append(measure(tried[-1]))
        if values[-1] < values[population[-1]]:
            population[-1] = len(tried) - 1
    best = int(np.argmin(values))
    info = LcscInfo(values[best], np.array(values), np.stack(tried))
    return jnp.asarray(tried[best], float), info


class _Draw(NamedTuple):
    """What makes one child."""

    parents: tuple[int, int]  # two ranks
    mask: np.ndarray  # (n,), bool, whether a weight is the first parent's
    noise: np.ndarray  # (n,), standard normal


def _draws(key: jax.Array, children: int, ranks: int, count: int) -> Iterator[_Draw]:
    keys = jax.random.split(trees.named_key(key, "lcsc"), 4)
    first = np.asarray(jax.random.randint(keys[0], (children,), 0, ranks))
    further = np.asarray(jax.random.randint(keys[1], (children,), 1, ranks))
    masks = np.asarray(jax.random.bernoulli(keys[2], shape=(children, count)))
    noise = np.asarray(jax.random.normal(keys[3], (children, count)), np.float64)
    for i in range(children):
        parents = int(first[i]), int(first[i] + further[i]) % ranks  # never the same one
        yield _Draw(parents, masks[i], noise[i])


def _check(count: int, evaluations: int, decays: int, mutation: float) -> None:
    if count < 2 or decays < 2:
        raise ValueError(
            f"lcsc: there are {count} checkpoints and {decays} decays; accepted: two or more of "
            f"both."
        )
    trees.check_at_least("lcsc", decays, evaluations=evaluations)
    trees.check_at_least("lcsc", 0, mutation=mutation)
