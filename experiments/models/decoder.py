"""A decoder-only transformer: pre-norm, rotary positions, SwiGLU, grouped-query attention.

    h = embed[tokens]                                              h: (batch, length, width)
    h += output(softmax(rope(q) rope(k)ᵀ / √d, causal) v)          q, k, v from RMSNorm(h)
    h += down(silu(gate(x)) · up(x)),  x = RMSNorm(h)              for each of `layers` blocks
    logits = RMSNorm(h) head,  head = embedᵀ when tied             (batch, length, vocabulary)

The blocks are one module whose arrays carry the layers in front; `lax.scan` slices them, so the
program is as large for 32 layers as for one, and an optimizer sees seven matrices, not 7 · layers.

Parameters: embed/embedding (vocabulary, width), blocks/attention/{query,key,value,output}/kernel,
blocks/feedforward/{gate,up,down}/kernel, each (layers, in, out), blocks/*_norm/scale (layers,
width), norm/scale (width) and, untied, head/kernel (width, vocabulary).

*Init*: truncated normal with standard deviation 1/√fan_in; `output` and `down`, which add to the
residual stream 2 · layers times, are divided by √(2 · layers); embedding and head are normal with
standard deviation 0.02, so that the first loss is log(vocabulary) to two digits.
*Zeroth order*: every parameter is read by `zeroth_order.read` or `rows`, each layer's inside of the
scan, so that `zeroth_order.stream`ed parameters are perturbed a layer at a time and matrices of
blocks that are `quantized` become floats a layer at a time.
*Numerics*: parameters are float32; matrix products and the residual stream are in `compute_dtype`;
norms, rotations, softmax and logits are computed in float32.
*Reference*: Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", for the
block; Su et al. 2021, "RoFormer", for the rotation (halves of a head are paired, not neighbours).
"""

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

import zeroth_order
from experiments.models.model import Model, Params, graph
from experiments.models.quantized import dequantized

EMBEDDING_DEVIATION = 0.02

# Shapes by parameters outside embedding and head, which depend on the vocabulary.
SIZES: dict[str, dict[str, Any]] = {
    "0.4m": dict(width=96, layers=4, heads=2, hidden=256),
    "1m": dict(width=160, layers=4, heads=2, hidden=384),
    "3m": dict(width=256, layers=4, heads=4, hidden=640),
    "10m": dict(width=384, layers=6, heads=6, hidden=1024),
    # Wen et al. 2025, "Fantastic Pretraining Optimizers and Where to Find Them"
    "130m": dict(width=512, layers=32, heads=8, hidden=2048),
    "300m": dict(width=768, layers=32, heads=12, hidden=3072),
    "520m": dict(width=1024, layers=32, heads=16, hidden=4096),
    "1.2b": dict(width=1536, layers=32, heads=24, hidden=6144),
}


@dataclasses.dataclass
class Decoder:
    """Shape and arithmetic of a decoder; `build()` gives its functions of (batch, length) tokens.

    Errors: ValueError where the heads do not divide the width, the key-value heads not the heads,
    or a head has an odd size, which a rotation of pairs cannot fill.
    """

    vocabulary: int = 256
    width: int = 160
    layers: int = 4
    heads: int = 2
    kv_heads: int = 0  # heads of keys and values, each shared by heads/kv_heads queries; 0: heads
    hidden: int = 384  # width of the feed-forward layer
    tied: bool = True  # the head is the embedding
    remat: bool = False  # keep only the input of each block and compute it again going backwards
    compute_dtype: str = "float32"  # "float32" or "bfloat16"
    rope_base: float = 1e4  # longest rotary wavelength over 2π, in tokens

    def build(self) -> Model:
        _check(self)
        return Model(functools.partial(_init, self), functools.partial(_apply, self))


def _check(config: Decoder) -> None:
    for name in ("vocabulary", "width", "layers", "heads", "hidden"):
        if getattr(config, name) < 1:
            raise ValueError(f"Decoder: {name} is {getattr(config, name)}; accepted: at least 1.")
    if config.width % config.heads:
        raise ValueError(
            f"Decoder: width = {config.width} is not divisible by heads = {config.heads}."
        )
    if (config.width // config.heads) % 2:
        raise ValueError(
            f"Decoder: a head has width / heads = {config.width // config.heads} entries; rotary "
            "positions need an even number."
        )
    if config.kv_heads < 0 or (config.kv_heads and config.heads % config.kv_heads):
        raise ValueError(
            f"Decoder: heads = {config.heads} is not divisible by kv_heads = {config.kv_heads}; "
            "0 means as many as heads."
        )
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"Decoder: compute_dtype is {config.compute_dtype!r}; accepted: 'float32', 'bfloat16'."
        )


def _linear(rows: int, columns: int, config: Decoder, rngs: nnx.Rngs, scale: float) -> nnx.Linear:
    return nnx.Linear(
        rows,
        columns,
        use_bias=False,
        dtype=jnp.dtype(config.compute_dtype),
        kernel_init=nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal"),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: Decoder, *, rngs: nnx.Rngs):
        self.head = config.width // config.heads
        keys = (config.kv_heads or config.heads) * self.head
        self.query = _linear(config.width, config.width, config, rngs, 1.0)
        self.key = _linear(config.width, keys, config, rngs, 1.0)
        self.value = _linear(config.width, keys, config, rngs, 1.0)
        self.output = _linear(config.width, config.width, config, rngs, 0.5 / config.layers)

    def __call__(self, x: jax.Array, angles: jax.Array) -> jax.Array:
        def heads(y: jax.Array) -> jax.Array:  # (batch, length, heads · d) -> (.., heads, d)
            return y.reshape(*y.shape[:-1], -1, self.head)

        mixed = jax.nn.dot_product_attention(
            rotate(heads(self.query(x)), angles),
            rotate(heads(self.key(x)), angles),
            heads(self.value(x)),
            is_causal=True,
        )
        return self.output(mixed.reshape(x.shape))


class Feedforward(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: Decoder, *, rngs: nnx.Rngs):
        self.gate = _linear(config.width, config.hidden, config, rngs, 1.0)
        self.up = _linear(config.width, config.hidden, config, rngs, 1.0)
        self.down = _linear(config.hidden, config.width, config, rngs, 0.5 / config.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: Decoder, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.attention_norm = nnx.RMSNorm(config.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.feedforward_norm = nnx.RMSNorm(config.width, dtype=dtype, rngs=rngs)
        self.feedforward = Feedforward(config, rngs=rngs)

    def __call__(self, h: jax.Array, angles: jax.Array) -> jax.Array:
        h = h + self.attention(self.attention_norm(h), angles)
        return h + self.feedforward(self.feedforward_norm(h))


def rotary_angles(length: int, head: int, base: float) -> jax.Array:
    """(length, head / 2) float32: position p turns pair i by p · base^(-2 i / head)."""
    frequencies = base ** (-jnp.arange(0, head, 2, dtype=jnp.float32) / head)
    return jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turn the pairs (x[i], x[i + d/2]) of (batch, length, heads, d) by their position's angles."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # (length, 1, d / 2)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def _init(config: Decoder, key: jax.Array) -> Params:
    """Draws of a part depend on its own name alone, so adding a head leaves the blocks' alone."""

    def named(name: str) -> jax.Array:
        return jax.random.fold_in(key, zlib.crc32(f"decoder/{name}".encode()))

    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs=rngs)

    shape = (config.vocabulary, config.width)
    normal = nnx.initializers.normal(EMBEDDING_DEVIATION)
    params = {
        "embed": {"embedding": normal(named("embed"), shape)},
        "blocks": nnx.to_pure_dict(nnx.state(create(nnx.Rngs(named("blocks"))))),
        "norm": {"scale": jnp.ones(config.width)},
    }
    if not config.tied:
        params["head"] = {"kernel": normal(named("head"), shape[::-1])}
    return params


def _apply(config: Decoder, params: Params, tokens: jax.Array) -> jax.Array:
    dtype = jnp.dtype(config.compute_dtype)
    block_graph = graph(lambda: Block(config, rngs=nnx.Rngs(0)))
    norm_graph = graph(lambda: nnx.RMSNorm(config.width, dtype=dtype, rngs=nnx.Rngs(0)))
    angles = rotary_angles(tokens.shape[1], config.width // config.heads, config.rope_base)

    def body(h: jax.Array, block: Params) -> tuple[jax.Array, None]:
        return nnx.merge(block_graph, dequantized(zeroth_order.read(block)))(h, angles), None

    if config.remat:
        body = jax.checkpoint(body, prevent_cse=False)
    h = zeroth_order.rows(params["embed"]["embedding"], tokens).astype(dtype)
    h, _ = lax.scan(body, h, params["blocks"])
    norm = nnx.merge(norm_graph, zeroth_order.read(params["norm"]))
    table = params["embed"]["embedding"] if config.tied else params["head"]["kernel"]
    head = zeroth_order.read(table).T if config.tied else zeroth_order.read(table)
    return jnp.matmul(norm(h), head.astype(dtype), preferred_element_type=jnp.float32)
