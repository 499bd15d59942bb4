"""Next-token prediction on a Markov chain of which every probability is known.

The model is a table of logits, one row a token: logits of the next token = table[token].
loss = mean over samples and positions of -log p(next), in nats. The rows of the chain are

    even tokens, near-deterministic:  P_i = (1 - spread) · one successor   + spread · uniform
    odd tokens, of high entropy:      P_i = (1 - spread) · uniform on half + spread · uniform

The first kind is learned ever better by many large steps; the second is learned soon and then only
adds gradient noise, which small steps average. That makes it the smallest language model on which
schedules that stay high and then decay (warmup-stable-decay) show what they do. The chain is our
own definition. Validation is exact: expectations under the stationary distribution, no sampling;
`excess` is the loss above the entropy rate, the smallest loss possible.

*Reference*: Wen et al. 2024, "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss
Landscape Perspective", for the idea of such a chain.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.order import sample_indices, uniform
from experiments.tasks.task import Batch, Params, Place, Task

CHAIN_SEED = 0  # of the chain, not of a run: every run learns the same one


class Chain(NamedTuple):
    """A Markov chain."""

    transitions: np.ndarray  # (vocabulary, vocabulary) float64, rows sum to 1
    stationary: np.ndarray  # (vocabulary,) float64, sums to 1

    def entropy_rate(self) -> float:
        """Nats a token: Σ_i π_i H(P_i)."""
        p = self.transitions
        return -float(self.stationary @ np.sum(p * np.log(p), axis=1))


@dataclasses.dataclass
class BigramChain:
    """Sequences start in the stationary distribution; the stream of them never ends."""

    vocabulary: int = 64  # even, at least 4
    length: int = 64  # transitions in a sample
    spread: float = 0.02  # probability of a token drawn from all, in (0, 1)

    def build(self) -> Task:
        """Raises ValueError where a field is out of range."""
        if self.vocabulary < 4 or self.vocabulary % 2:
            raise ValueError(
                f"BigramChain: vocabulary is {self.vocabulary}; accepted: even, at least 4."
            )
        if self.length < 1 or not 0 < self.spread < 1:
            raise ValueError(
                f"BigramChain: length = {self.length}, spread = {self.spread}; accepted: length at "
                "least 1, spread between 0 and 1."
            )
        chain = make_chain(self.vocabulary, self.spread)

        def init(key: jax.Array) -> Params:
            return {"table": jnp.zeros((self.vocabulary, self.vocabulary))}

        def batches(seed: int, samples: int, count: int) -> Batch:
            return {"tokens": draw(chain, seed, np.arange(samples, samples + count), self.length)}

        floor = chain.entropy_rate()
        return Task(
            init=init,
            loss=_loss,
            losses=_losses,
            batches=batches,
            evaluate=_evaluation(chain),
            facts={
                "loss_unit": "nats per token",
                "primary": "loss",
                "tokens_per_sample": self.length,
                "samples": None,
                "baselines": {
                    "uniform": float(np.log(self.vocabulary)),
                    "unigram": -float(chain.stationary @ np.log(chain.stationary)),
                    "entropy rate": floor,
                },
                "provenance": {"source": "synthetic Markov chain", **dataclasses.asdict(self)},
            },
        )


def make_chain(vocabulary: int, spread: float) -> Chain:
    """Successors are a permutation of all tokens; halves are drawn for each odd token."""
    successors = sample_indices(CHAIN_SEED, 0, vocabulary, vocabulary)
    transitions = np.full((vocabulary, vocabulary), spread / vocabulary)
    for token in range(vocabulary):
        half = sample_indices(CHAIN_SEED, vocabulary * (token + 1), vocabulary // 2, vocabulary)
        targets = successors[[token]] if token % 2 == 0 else half
        transitions[token, targets] += (1 - spread) / len(targets)
    # π P = π and Σ π = 1, the last equation in place of one that the others imply.
    system = transitions.T - np.eye(vocabulary)
    system[-1] = 1.0
    return Chain(transitions, np.linalg.solve(system, np.eye(vocabulary)[-1]))


def draw(chain: Chain, seed: int, samples: np.ndarray, length: int) -> np.ndarray:
    """(samples, length + 1) int32: sequences by number, through inverse distribution functions."""
    cumulative = np.cumsum(chain.transitions, axis=1)[:, :-1]
    draws = uniform(seed, samples[:, None], np.arange(length + 1))
    tokens = np.empty((len(samples), length + 1), np.int32)
    tokens[:, 0] = np.searchsorted(np.cumsum(chain.stationary)[:-1], draws[:, 0])
    for t in range(length):
        tokens[:, t + 1] = np.sum(cumulative[tokens[:, t]] < draws[:, t + 1, None], axis=1)
    return tokens


def _loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    nats, odd = _nats(params, batch["tokens"])
    return jnp.mean(nats), _by_kind(nats, odd)


def _losses(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    nats, odd = _nats(params, batch["tokens"])
    return jnp.mean(nats, axis=1), _by_kind(nats, odd)


def _nats(params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(samples, length) each: nats, and whether the token that was seen is odd."""
    nats = optax.softmax_cross_entropy_with_integer_labels(
        params["table"][tokens[:, :-1]], tokens[:, 1:]
    )
    return nats, tokens[:, :-1] % 2


def _by_kind(nats: jax.Array, odd: jax.Array) -> dict[str, jax.Array]:
    return {
        "loss_near_deterministic": jnp.sum(nats * (1 - odd)) / jnp.maximum(jnp.sum(1 - odd), 1),
        "loss_high_entropy": jnp.sum(nats * odd) / jnp.maximum(jnp.sum(odd), 1),
    }


def _evaluation(chain: Chain) -> Callable[[Params, Place], dict[str, float]]:
    weights = chain.stationary[:, None] * chain.transitions
    log_p = np.log(chain.transitions)

    @jax.jit
    def excess(params: Params) -> jax.Array:  # (vocabulary,) nats, each row's part of the sum
        return jnp.sum(weights * (log_p - jax.nn.log_softmax(params["table"])), axis=1)

    def evaluate(params: Params, place: Place) -> dict[str, float]:
        rows = np.asarray(excess(params), np.float64)
        return {
            "loss": chain.entropy_rate() + float(rows.sum()),
            "excess": float(rows.sum()),
            "excess_near_deterministic": float(rows[::2].sum()),
            "excess_high_entropy": float(rows[1::2].sum()),
        }

    return evaluate
