import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.decoder import SIZES, Block, Decoder, rotary_angles, rotate
from experiments.models.model import graph

SMALL = Decoder(vocabulary=32, width=16, layers=3, heads=4, kv_heads=2, hidden=24)


def make(**changes):
    """The functions and parameters of SMALL with changes; each compiled once."""
    return _make(tuple(changes.items()))


@functools.cache
def _make(changes):
    model = dataclasses.replace(SMALL, **dict(changes)).build()
    return model._replace(apply=jax.jit(model.apply)), jax.jit(model.init)(jax.random.key(0))


def tokens(shape=(2, 8), seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocabulary, shape)


def paths(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def merged_block(config):
    structure = graph(lambda: Block(config, rngs=nnx.Rngs(0)))
    return lambda arrays, h, angles: nnx.merge(structure, arrays)(h, angles)


def layer_of(params, layer):
    return jax.tree.map(lambda a: a[layer], params["blocks"])


def test_parameters_are_a_plain_dict_with_the_layers_in_front():
    _, params = make(tied=False)
    assert type(params) is dict and type(params["blocks"]) is dict
    assert paths(params) == {
        "embed/embedding": (32, 16),
        "blocks/attention/query/kernel": (3, 16, 16),
        "blocks/attention/key/kernel": (3, 16, 8),
        "blocks/attention/value/kernel": (3, 16, 8),
        "blocks/attention/output/kernel": (3, 16, 16),
        "blocks/attention_norm/scale": (3, 16),
        "blocks/feedforward/gate/kernel": (3, 16, 24),
        "blocks/feedforward/up/kernel": (3, 16, 24),
        "blocks/feedforward/down/kernel": (3, 24, 16),
        "blocks/feedforward_norm/scale": (3, 16),
        "norm/scale": (16,),
        "head/kernel": (16, 32),
    }


def test_tied_head_is_the_embedding():
    model, params = make()
    untied, _ = make(tied=False)
    assert "head" not in params
    separate = params | {"head": {"kernel": params["embed"]["embedding"].T}}
    logits = model.apply(params, tokens())
    np.testing.assert_allclose(logits, untied.apply(separate, tokens()), atol=1e-6)


def test_draws_of_the_blocks_do_not_depend_on_the_head():
    _, tied = make()
    _, untied = make(tied=False)
    jax.tree.map(np.testing.assert_array_equal, tied["blocks"], untied["blocks"])


def test_initial_deviations():
    _, params = make(vocabulary=256, width=64, layers=8, heads=4, kv_heads=0, hidden=256)
    blocks = params["blocks"]
    expected = {
        ("attention", "query"): 64**-0.5,
        ("attention", "output"): (64 * 16) ** -0.5,
        ("feedforward", "gate"): 64**-0.5,
        ("feedforward", "down"): (256 * 16) ** -0.5,
    }
    for (part, name), deviation in expected.items():
        kernel = np.asarray(blocks[part][name]["kernel"])
        assert kernel.std() == pytest.approx(deviation, rel=0.03)
        assert abs(kernel.mean()) < 5 * deviation / kernel.size**0.5
        for layer in range(1, 8):
            assert not np.array_equal(kernel[0], kernel[layer])
    assert np.asarray(params["embed"]["embedding"]).std() == pytest.approx(0.02, rel=0.05)


def test_first_loss_is_log_of_the_vocabulary():
    model, params = make(vocabulary=256, width=64, layers=8, heads=4, kv_heads=0, hidden=256)
    inputs = np.random.default_rng(1).integers(0, 256, (4, 33))
    logits = model.apply(params, inputs[:, :-1])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    loss = -np.take_along_axis(log_p, inputs[:, 1:, None], -1).mean()
    assert loss == pytest.approx(math.log(256), abs=0.05)


def test_logits_see_no_later_token():
    model, params = make()
    first = tokens()
    second = first.copy()
    second[:, 5] = (second[:, 5] + 1) % SMALL.vocabulary
    before, after = (np.asarray(model.apply(params, x)) for x in (first, second))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.abs(before[:, 5:] - after[:, 5:]).max(-1) > 1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    angles = rotary_angles(12, 8, 100.0)
    q, k = (jax.random.normal(jax.random.key(i), (8,)) for i in (0, 1))
    queries, keys = (rotate(jnp.broadcast_to(x, (1, 12, 1, 8)), angles)[0, :, 0] for x in (q, k))
    products = np.asarray(queries @ keys.T)
    for distance in range(-11, 12):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
    assert products[0, 0] == pytest.approx(float(q @ k), abs=1e-5)
    assert abs(products[0, 3] - products[0, 0]) > 1e-3


def test_rotation_by_hand():
    """The first pair turns by the position, the second, with base 100, by a tenth of it."""
    turned = rotate(jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4), jnp.array([[3.0, 0.3]]))
    np.testing.assert_allclose(rotary_angles(4, 4, 100.0)[3], [3.0, 0.3], rtol=1e-6)
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    np.testing.assert_allclose(turned[0, 0, 0], expected, rtol=1e-5)


def test_order_of_tokens_matters():
    model, params = make()
    swapped = tokens()[:, [1, 0, *range(2, 8)]]
    last = [np.asarray(model.apply(params, x))[:, -1] for x in (tokens(), swapped)]
    assert np.abs(last[0] - last[1]).max() > 1e-5


def test_grouped_queries_are_full_attention_with_repeated_keys():
    model, params = make()
    full, _ = make(kv_heads=0)
    attention = dict(params["blocks"]["attention"])
    for name in ("key", "value"):
        kernel = np.asarray(attention[name]["kernel"]).reshape(3, 16, 2, 4)
        attention[name] = {"kernel": np.repeat(kernel, 2, axis=2).reshape(3, 16, 16)}
    repeated = params | {"blocks": params["blocks"] | {"attention": attention}}
    np.testing.assert_allclose(
        model.apply(params, tokens()), full.apply(repeated, tokens()), atol=1e-6
    )


def test_zero_key_value_heads_are_as_many_as_heads():
    model, params = make(kv_heads=0)
    explicit = jax.jit(dataclasses.replace(SMALL, kv_heads=SMALL.heads).build().apply)
    np.testing.assert_array_equal(model.apply(params, tokens()), explicit(params, tokens()))


def test_attention_and_feedforward_against_plain_numpy():
    """One block from the equations of the module, in float64."""
    config = dataclasses.replace(SMALL, kv_heads=0)
    _, params = make(kv_heads=0)
    block = jax.tree.map(lambda a: np.asarray(a, np.float64), layer_of(params, 0))
    h = np.random.default_rng(0).normal(size=(2, 8, 16))
    angles = rotary_angles(8, 4, config.rope_base)
    ours = jax.jit(merged_block(config))(layer_of(params, 0), jnp.asarray(h, jnp.float32), angles)

    def norm(x):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)

    def turn(x):
        z = x[..., :2] + 1j * x[..., 2:]
        z = z * np.exp(1j * np.asarray(angles, np.float64))[:, None]
        return np.concatenate([z.real, z.imag], -1)

    x, part = norm(h), block["attention"]
    q, k, v = ((x @ part[name]["kernel"]).reshape(2, 8, 4, 4) for name in ("query", "key", "value"))
    scores = np.einsum("bqhd,bkhd->bhqk", turn(q), turn(k)) / 2
    scores = np.where(np.tril(np.ones((8, 8), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    h = h + np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 8, 16) @ part["output"]["kernel"]
    x, part = norm(h), block["feedforward"]
    gate = x @ part["gate"]["kernel"]
    h = h + (gate / (1 + np.exp(-gate)) * (x @ part["up"]["kernel"])) @ part["down"]["kernel"]
    np.testing.assert_allclose(ours, h, atol=2e-5)


def test_scan_is_a_loop_over_the_layers():
    config = dataclasses.replace(SMALL, kv_heads=0)
    model, params = make(kv_heads=0)
    block = jax.jit(merged_block(config))
    angles = rotary_angles(8, 4, config.rope_base)
    h = params["embed"]["embedding"][tokens()]
    for layer in range(config.layers):
        h = block(layer_of(params, layer), h, angles)
    h = h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * params["norm"]["scale"]
    expected = h @ params["embed"]["embedding"].T
    np.testing.assert_allclose(model.apply(params, tokens()), expected, atol=1e-5)


def gradient(config, params):
    apply = config.build().apply
    return jax.jit(jax.grad(lambda p: jnp.mean(jax.nn.logsumexp(apply(p, tokens()), -1) ** 2)))(
        params
    )


def test_remat_changes_nothing():
    _, params = make()
    plain, again = (
        gradient(dataclasses.replace(SMALL, remat=remat), params) for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, again)


def test_every_parameter_gets_a_gradient():
    _, params = make()
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient(SMALL, params)))


def test_bfloat16_computes_near_float32_with_float32_parameters():
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    half = config.build()
    model, params = make()
    drawn = jax.eval_shape(half.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    assert {g.dtype for g in jax.tree.leaves(gradient(config, params))} == {jnp.dtype("float32")}
    exact, rounded = (np.asarray(jax.jit(m.apply)(params, tokens())) for m in (model, half))
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03


@pytest.mark.parametrize(
    ("size", "blocks"),
    [
        ("130m", 134_217_728),
        ("300m", 301_989_888),
        ("520m", 536_870_912),
        ("1.2b", 1_207_959_552),
    ],
)
def test_sizes_of_the_optimizer_papers(size, blocks):
    """The paper's counts leave out embedding, head and norms."""
    config = Decoder(**SIZES[size])
    shapes = paths(jax.eval_shape(config.build().init, jax.random.key(0)))
    matrices = {path: shape for path, shape in shapes.items() if path.endswith("kernel")}
    assert sum(math.prod(shape) for shape in matrices.values()) == blocks
    assert sum(math.prod(shape) for shape in shapes.values()) == (
        blocks + 256 * config.width + (2 * config.layers + 1) * config.width
    )


@pytest.mark.parametrize(
    ("size", "total"),
    [("0.4m", 467_808), ("1m", 1_189_280), ("3m", 3_082_496), ("10m", 10_720_128)],
)
def test_small_sizes(size, total):
    shapes = jax.eval_shape(Decoder(**SIZES[size]).build().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 18}, "width = 18 is not divisible by heads = 4"),
        ({"width": 12}, "3 entries"),
        ({"kv_heads": 3}, "heads = 4 is not divisible by kv_heads = 3"),
        ({"kv_heads": -1}, "kv_heads = -1"),
        ({"layers": 0}, "layers is 0"),
        ({"compute_dtype": "float16"}, "'float16'; accepted"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change).build()
