"""A log from which a run's parameters are made again: a seed and a few coefficients a step.

    params_{t+1} = params_t - (sum over j of (rate c)_{t,j} z(seed_t + j) + rate_t decay params_t)

A log is a header and, for each step, the seed, the products of rate and coefficients and, where the
weights decay, the rate: 8 bytes a step for one sample. With the first parameters and the direction
it holds every step's parameters, bit for bit where `zeroth_order.apply`'s are, bfloat16 included.

It is of algorithms that step by `apply` alone: `zeroth_order.mezo`,
`zeroth_order.one_point_residual` and `zeroth_order.zo_sgd_conservative`.

*Cost.* Of `replay`: one pass over the parameters a step, in one compiled loop.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333), Section 2.1, on the storage of a trajectory.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zeroth_order.descent import DescentInfo
from zeroth_order.directions import Direction
from zeroth_order.gradients import SeededGradient, apply

MAGIC = b"zeroth-order log 1\n"
DTYPES = ("float32", "float64")
MOST_HEADER = 4096  # bytes


class Log(NamedTuple):
    """The steps of a run."""

    seeds: np.ndarray  # (steps,), uint32
    steps: np.ndarray  # (steps, samples), float32 or wider: rate times coefficient
    rates: np.ndarray | None = None  # (steps,), as wide; None where nothing decays

    @classmethod
    def of(cls, info: DescentInfo, *, decays: bool = False) -> "Log":
        """Of one step's info, or of many that a scan stacked.

        Args:
          info: what the algorithm's update told.
          decays: keep the rates as well.
        """
        seeds = np.atleast_1d(np.asarray(info.gradient.seed, np.uint32))
        coefficients = np.asarray(info.gradient.coefficients)
        rates = np.atleast_1d(np.asarray(info.learning_rate)).astype(coefficients.dtype)
        steps = rates[:, None] * coefficients.reshape(len(seeds), -1)
        return cls(seeds, steps, rates if decays else None)

    def followed_by(self, other: "Log") -> "Log":
        """Both, one after the other.

        Raises:
          ValueError: they differ in samples, dtype or whether they keep rates.
        """
        for name, ours, theirs in (
            ("samples", self.steps.shape[1], other.steps.shape[1]),
            ("dtype", self.steps.dtype, other.steps.dtype),
            ("rates", self.rates is not None, other.rates is not None),
        ):
            if ours != theirs:
                raise ValueError(f"followed_by: {name} is {theirs}; accepted: {ours}, as before.")
        rates = None
        if self.rates is not None and other.rates is not None:
            rates = np.concatenate([self.rates, other.rates])
        seeds = np.concatenate([self.seeds, other.seeds])
        return Log(seeds, np.concatenate([self.steps, other.steps]), rates)

    def to_bytes(self) -> bytes:
        """A header, and the arrays one after the other, little-endian."""
        count, samples = self.steps.shape
        header = {
            "steps": count,
            "samples": samples,
            "dtype": self.steps.dtype.name,
            "rates": self.rates is not None,
        }
        arrays = [self.seeds.astype("<u4"), self.steps, self.rates]
        body = [a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays if a is not None]
        return MAGIC + json.dumps(header).encode() + b"\n" + b"".join(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Log":
        """What `to_bytes` wrote.

        Raises:
          ValueError: it is something else, or does not have the length that its header says.
        """
        header, body = _header(data)
        count, samples = header["steps"], header["samples"]
        dtype = np.dtype(header["dtype"]).newbyteorder("<")
        lengths = [4 * count, count * samples * dtype.itemsize]
        lengths.append(count * dtype.itemsize if header["rates"] else 0)
        if len(body) != sum(lengths):
            raise ValueError(
                f"Log.from_bytes: {len(body)} bytes follow the header; accepted: {sum(lengths)}, "
                f"as it says of {count} steps."
            )
        ends = np.cumsum(lengths)
        seeds = np.frombuffer(body[: ends[0]], "<u4").astype(np.uint32)
        steps = np.frombuffer(body[ends[0] : ends[1]], dtype).astype(header["dtype"])
        rates = np.frombuffer(body[ends[1] :], dtype).astype(header["dtype"])
        return cls(seeds, steps.reshape(count, samples), rates if header["rates"] else None)


def replay(
    along: Direction,
    params: optax.Params,
    log: Log,
    *,
    decay: Any = 0.0,
    stochastic: bool = True,
) -> optax.Params:
    """The parameters after the log's steps.

    Args:
      along: the direction of the run.
      params: its first parameters.
      log: its steps, or the first of them.
      decay: its weight decay, as `zeroth_order.apply` takes it.
      stochastic: as the run rounded bfloat16; the algorithms do it stochastically.

    Raises:
      ValueError: decay is given and the log keeps no rates.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.direction()
    >>> algorithm = zeroth_order.mezo(
    ...     lambda p, batch: jnp.sum(p["w"] ** 2), 0.01, zeroth_order.spsa(along), along)
    >>> first = {"w": jnp.ones(8)}
    >>> run = jax.jit(lambda s: jax.lax.scan(algorithm.update, s, jnp.arange(50)))
    >>> state, info = run(algorithm.init(first, jax.random.key(0)))
    >>> log = zeroth_order.Log.from_bytes(zeroth_order.Log.of(info).to_bytes())
    >>> bool((zeroth_order.replay(along, first, log)["w"] == state.params["w"]).all())
    True
    """
    decays = any(not isinstance(d, float) or d for d in jax.tree.leaves(decay))
    if decays and log.rates is None:
        raise ValueError("replay: decay is given; accepted with it: a log of decays=True.")
    rates = np.zeros(len(log.seeds), log.steps.dtype) if log.rates is None else log.rates

    def step(params: optax.Params, entry: Any) -> tuple[optax.Params, None]:
        seed, products, rate = entry
        of_rate = jax.tree.map(lambda d: rate * jnp.asarray(d, rate.dtype), decay)
        estimate = SeededGradient(seed, products)
        moved = apply(
            along, estimate, params, decay=of_rate if decays else 0.0, stochastic=stochastic
        )
        return moved, None

    @jax.jit
    def run(params: optax.Params, entries: Any) -> optax.Params:
        return jax.lax.scan(step, params, entries)[0]

    return run(jax.tree.map(jnp.asarray, params), (log.seeds, log.steps, rates))


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, checked, and what follows it."""
    start = len(MAGIC)
    end = data.find(b"\n", start, start + MOST_HEADER)
    if not data.startswith(MAGIC) or end < 0:
        raise ValueError(
            f"Log.from_bytes: the data begin with {data[:start]!r}; accepted: {MAGIC!r} and a "
            f"header."
        )
    try:
        header = json.loads(data[start:end])
        kinds = {name: type(header.get(name)) for name in ("steps", "samples", "dtype", "rates")}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"Log.from_bytes: the header {data[start:end]!r} is no JSON.") from error
    expected = {"steps": int, "samples": int, "dtype": str, "rates": bool}
    known = kinds == expected and header["dtype"] in DTYPES
    if not known or min(header["steps"], header["samples"]) < 0:
        raise ValueError(
            f"Log.from_bytes: the header is {header}; accepted: steps and samples >= 0, a dtype of "
            f"{', '.join(DTYPES)}, rates true or false."
        )
    return header, data[end + 1 :]
