"""What consensus methods share: how much each point weighs, by its loss."""

import jax
import jax.numpy as jnp


def gibbs_weights(losses: jax.Array, alpha: jax.Array) -> jax.Array:
    """exp(-alpha loss) over their sum; a loss that is no number weighs nothing.

    The smallest loss is subtracted before the product: alpha may be so large that the differences
    would be lost in its rounding.
    """
    losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    return jax.nn.softmax(-alpha * (losses - jnp.min(losses)))
