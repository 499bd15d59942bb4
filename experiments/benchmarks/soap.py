"""SOAP: ordinary and refresh steps of a stack of square matrices, against other ways to run it.

"Per leaf" is the same arithmetic with every matrix a group of its own; "moment turned each step"
turns the first moment out of its basis and back at every step, as the authors' code does, where
that changes nothing. Both times and the compiler's temporaries are compared; 8 matrices of 512 x
512 have 2 M parameters, so that 8 MiB of temporaries are 4 bytes a parameter.

On a CPU a refresh is LAPACK's QR, whose threads spin where other processes want the cores: on a
busy machine, set OPENBLAS_NUM_THREADS=1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from experiments.benchmarks.harness import Candidate, Comparison


def per_leaf(**arguments: Any) -> optax.GradientTransformation:
    """SOAP of every leaf alone."""
    tx = optim.scale_by_soap(**arguments)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        pairs = {
            name: tx.update(updates[name], state[name], None if params is None else params[name])
            for name in updates
        }
        return {k: pair[0] for k, pair in pairs.items()}, {k: pair[1] for k, pair in pairs.items()}

    return optax.GradientTransformation(
        lambda params: {name: tx.init(p) for name, p in params.items()}, update
    )


def moment_turned(**arguments: Any) -> optax.GradientTransformation:
    """SOAP whose first moment leaves its basis and comes back at every step."""
    tx = optim.scale_by_soap(**arguments)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(updates, state, params)
        stacks = {}
        for name, stack in state.stacks.items():
            left, right = stack.bases
            mu = left.mT @ (left @ stack.mu @ right.mT) @ right
            stacks[name] = stack._replace(mu=mu)
        return updates, state._replace(stacks=stacks)

    return optax.GradientTransformation(tx.init, update)


def candidate(
    make: Callable[..., optax.GradientTransformation], frequency: int, count: int, size: int
) -> Candidate:
    """A donated (direction, state) that a fixed gradient steps, bases found beforehand."""
    tx = make(frequency=frequency)
    keys = jax.random.split(jax.random.key(0), count)
    gradient = {f"{i:02d}": jax.random.normal(key, (size, size)) for i, key in enumerate(keys)}
    first, state = jax.jit(tx.update)(gradient, tx.init(gradient))

    def step(carry: Any, gradient: Any) -> Any:
        _, state = carry
        return tx.update(gradient, state)

    return Candidate(step, (jax.tree.map(jnp.zeros_like, first), state), gradient)


def candidates(quick: bool) -> Comparison:
    """Ordinary steps, and refreshes at every step; `quick` takes 4 matrices of 64 x 64."""
    count, size = (4, 64) if quick else (8, 512)
    never = 1_000_000
    ways: dict[str, Callable[..., optax.GradientTransformation]] = {
        "stacked": optim.scale_by_soap,
        "per leaf": per_leaf,
        "moment turned each step": moment_turned,
    }
    found = {f"ordinary, {name}": (make, never) for name, make in ways.items()}
    found |= {f"refresh, {name}": (ways[name], 1) for name in ("stacked", "per leaf")}
    return Comparison(
        candidates={
            name: functools.partial(candidate, make, frequency, count, size)
            for name, (make, frequency) in found.items()
        },
        reference="ordinary, stacked",
        ideal_bytes=None,
    )
