"""A bilevel problem and its batches.

Minimise outer(x, y*(x)) over x, where y*(x) is the y that makes inner(x, y) least.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class BilevelProblem(NamedTuple):
    """The two functions of (x, y, batch), each a scalar; x and y are pytrees of floats."""

    outer: Callable[[Any, Any, Any], jax.Array]  # minimised over x
    inner: Callable[[Any, Any, Any], jax.Array]  # minimised over y


class BilevelBatch(NamedTuple):
    """What the two functions are given as `batch`; None where they need nothing."""

    outer: Any = None  # for outer, such as examples to validate on
    inner: Any = None  # for inner, such as examples to train on
