"""Training on the mini-batches of highest loss (DyBAT): which ones are next.

An epoch is cut into b mini-batches for good, and `l` holds the loss that each had when it was last
trained on. The first epoch trains on all of them; after it every round trains on the
floor(delta b) of highest `l`, in the order of the data, and replaces their `l` alone. Rounds go on
until as many steps are made as without selection.

`hard_batches` is the choice at the start of a round; the loop around it is the caller's.

*Differences.* In the authors' code a batch is a position in a loader, so that where the loader
shuffles, the batch that is trained on is another than the one whose loss was high. A share that
would choose no batch, where their loop does not end, is an error.

*Cost.* A sort of b numbers a round.

*Reference.* Sahayam, Zakkam and Jayaraman, Can We Learn Better with Hard Samples?, 2023
(arXiv:2304.03486); imjohnzakkam/DyBAT@a0d7b25155c9, run.py. Of the paper the abstract was at hand;
the procedure is that of the code.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def hard_batches(losses: ArrayLike, share: float) -> jax.Array:
    """The mini-batches to train on in the next round.

    Args:
      losses: (b,) of every mini-batch, when it was last trained on.
      share: delta, in (0, 1]; the authors use 0.2 to 1.

    Returns:
      (floor(share * b),) int32, numbers of mini-batches in rising order; of equal losses those that
      come first are chosen.

    Raises:
      ValueError: losses are no vector, or share is out of range or chooses no batch.

    >>> import jax.numpy as jnp, optim
    >>> optim.hard_batches(jnp.array([0.1, 0.9, 0.3, 0.8]), share=0.5).tolist()
    [1, 3]
    """
    if jnp.ndim(losses) != 1:
        raise ValueError(
            f"hard_batches: losses is of shape {jnp.shape(losses)}; accepted: (batches,)."
        )
    count = int(share * jnp.shape(losses)[0])
    if not 0 < share <= 1 or count < 1:
        raise ValueError(
            f"hard_batches: share is {share} of {jnp.shape(losses)[0]} batches; "
            "accepted: a share in (0, 1] of at least one batch."
        )
    return jnp.sort(jax.lax.top_k(jnp.asarray(losses), count)[1])
