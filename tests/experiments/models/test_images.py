"""Tests of mlp.py and resnet.py, which share a signature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.mlp import Mlp
from experiments.models.model import ImageModelConfig, Model
from experiments.models.resnet import ResNet

SHAPE, CLASSES = (8, 8, 1), 5
CONFIGS: dict[str, ImageModelConfig] = {
    "mlp": Mlp((12, 7)),
    "linear": Mlp(()),
    "resnet": ResNet(width=8, stages=2),
    "one stage": ResNet(width=8, stages=1, blocks=2),
}


@functools.cache
def make(name):
    """Functions and parameters, each compiled once."""
    model = CONFIGS[name].build(SHAPE, CLASSES)
    return Model(jax.jit(model.init), jax.jit(model.apply)), jax.jit(model.init)(jax.random.key(0))


def images(count=4):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def names(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name):
    model, params = make(name)
    logits = model.apply(params, images())
    assert logits.shape == (4, CLASSES) and logits.dtype == jnp.float32
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, images()) ** 2)))(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sample_depends_on_no_other(name):
    model, params = make(name)
    together = model.apply(params, images())
    alone = jnp.concatenate([model.apply(params, image[None]) for image in images()])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_seeds(name):
    model, params = make(name)
    same, other = (model.init(jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    differ = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params, other)))]
    assert any(differ)


def test_mlp_by_hand():
    model, params = make("mlp")
    assert names(params) == {
        "layer1/kernel": (64, 12),
        "layer1/bias": (12,),
        "layer2/kernel": (12, 7),
        "layer2/bias": (7,),
        "layer3/kernel": (7, 5),
        "layer3/bias": (5,),
    }
    x = images().reshape(4, -1)
    for layer in ("layer1", "layer2"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    expected = x @ params["layer3"]["kernel"] + params["layer3"]["bias"]
    np.testing.assert_allclose(model.apply(params, images()), expected, atol=1e-5)


def test_resnet_parameters():
    _, params = make("resnet")
    found = names(params)
    assert type(params["stage1"]) is dict
    assert found["stem/kernel"] == (3, 3, 1, 8)
    assert found["stage1/block1/first/kernel"] == (3, 3, 8, 8)
    assert found["stage2/block1/first/kernel"] == (3, 3, 8, 16)
    assert found["stage2/block1/shortcut/kernel"] == (1, 1, 8, 16)
    assert "stage1/block1/shortcut/kernel" not in found
    assert "stage1/block2/shortcut/kernel" not in names(make("one stage")[1])
    assert found["head/kernel"] == (16, 5)


def test_resnet_without_residual_branches_is_its_shortcuts():
    """Zero second convolutions leave the stem in the first stage, so the second sees it alone."""
    model, params = make("one stage")
    params = jax.tree.map(lambda leaf: leaf, params)  # dicts of its own
    for block in ("block1", "block2"):
        kernel = params["stage1"][block]["second"]["kernel"]
        params["stage1"][block]["second"]["kernel"] = jnp.zeros_like(kernel)
    x = jax.lax.conv_general_dilated(
        images(),
        params["stem"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # One group of eight channels: normalized over pixels and channels together.
    mean, variance = (f(x, axis=(1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    x = jnp.mean(jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-6)), axis=(1, 2))
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(model.apply(params, images()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Mlp((4, 0)), r"hidden is \(4, 0\)"),
        (ResNet(width=12), "width is 12; accepted: multiples of 8"),
        (ResNet(stages=0), "stages = 0"),
        (ResNet(blocks=0), "blocks = 0"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(SHAPE, CLASSES)
