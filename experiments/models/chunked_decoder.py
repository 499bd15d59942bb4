"""A decoder whose weights are read by a layer and by a chunk of the vocabulary at a time.

    h = embed[tokens]                                              h: (batch, length, width)
    h += out(softmax(q k^T / sqrt(d), causal) v)                   q, k, v from qkv(RMSNorm(h))
    h += down(relu(up(RMSNorm(h))))                                for each of `layers` blocks
    loss = log sum over the vocabulary of exp(x e) - x e[next],    x = RMSNorm(h), e = embed

It takes ordinary parameters and `zeroth_order.stream`ed ones. The sum over the vocabulary is one
over chunks, with the largest logit so far taken out of it, so that neither all the logits nor all
the perturbed embedding exist at once. Attention has no positions: what a pass costs is what counts.

Parameters: embed (vocabulary, width), norm (width), blocks/{qkv,out,up,down,norm1,norm2} with the
layers in front; `STACK` says so to `zeroth_order.direction`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import zeroth_order

STACK = {"blocks/.*": 1}


class ChunkedDecoder(NamedTuple):
    """Shape of a decoder."""

    layers: int = 12
    width: int = 512
    hidden: int = 2048
    heads: int = 8
    vocabulary: int = 8192
    chunk: int = 1024  # of the vocabulary, which it divides
    remat: bool = False  # keep only the input of each block and compute it again going backwards

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """Normal matrices of variance 1 / rows, norms of one."""
        keys = jax.random.split(key, 5)

        def normal(key: jax.Array, *shape: int) -> jax.Array:
            return (jax.random.normal(key, shape) / math.sqrt(shape[-2])).astype(dtype)

        layers, width, hidden = self.layers, self.width, self.hidden
        blocks = {
            "qkv": normal(keys[0], layers, width, 3 * width),
            "out": normal(keys[1], layers, width, width),
            "up": normal(keys[2], layers, width, hidden),
            "down": normal(keys[3], layers, hidden, width),
            "norm1": jnp.ones((layers, width), dtype),
            "norm2": jnp.ones((layers, width), dtype),
        }
        embed = normal(keys[4], self.vocabulary, width)
        return {"blocks": blocks, "embed": embed, "norm": jnp.ones(width, dtype)}

    def losses(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Cross entropy of each next token of (batch, length + 1) ones: (batch length,) float32."""
        h = zeroth_order.rows(params["embed"], tokens[:, :-1])

        def block(h: jax.Array, w: Any) -> tuple[jax.Array, None]:
            return self._block(h, zeroth_order.read(w)), None

        body = jax.checkpoint(block, prevent_cse=False) if self.remat else block
        h, _ = lax.scan(body, h, params["blocks"])
        x = _norm(h, zeroth_order.read(params["norm"])).reshape(-1, self.width)
        expected = zeroth_order.rows(params["embed"], tokens[:, 1:].reshape(-1))
        picked = jnp.sum(x * expected, -1, dtype=jnp.float32)
        return self._log_normalizer(x, params["embed"]) - picked

    def _block(self, h: jax.Array, w: Any) -> jax.Array:
        heads = (*h.shape[:-1], self.heads, -1)
        q, k, v = (a.reshape(heads) for a in jnp.split(_norm(h, w["norm1"]) @ w["qkv"], 3, -1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        h = h + mixed.reshape(h.shape) @ w["out"]
        return h + jax.nn.relu(_norm(h, w["norm2"]) @ w["up"]) @ w["down"]

    def _log_normalizer(self, x: jax.Array, embed: Any) -> jax.Array:
        """log sum of exp of all logits of each row."""

        def chunk(carry: Any, first: jax.Array) -> tuple[Any, None]:
            largest, total = carry
            table = zeroth_order.rows(embed, first + jnp.arange(self.chunk))
            logits = jnp.matmul(x, table.T, preferred_element_type=jnp.float32)
            top = jnp.maximum(largest, logits.max(-1))
            total = total * jnp.exp(largest - top) + jnp.exp(logits - top[:, None]).sum(-1)
            return (top, total), None

        none = jnp.full(len(x), -jnp.inf), jnp.zeros(len(x))
        firsts = jnp.arange(0, self.vocabulary, self.chunk)
        (largest, total), _ = lax.scan(chunk, none, firsts)
        return largest + jnp.log(total)


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    size = lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-5)
    return (wide * size * scale).astype(x.dtype)
