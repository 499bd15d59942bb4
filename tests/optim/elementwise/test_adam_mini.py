"""Adam-mini: blocks by hand, Adam where blocks are elements, the authors' names, memory."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run_jitted as run


def test_first_two_steps_by_hand():
    """Both neurons of one head, mean squares 25 and 12.5, then 0."""
    tx = optim.adam_mini(0.5, blocks={"w": "1 1"}, b1=0.5, b2=0.75, eps=1.0, weight_decay=0.1)
    params = {"w": jnp.array([[10.0, 20.0]])}
    state = tx.init(params)
    updates, state = tx.update({"w": jnp.array([[1.0, 7.0]])}, state, params)
    # m = g / 2, v = 25 / 4; p - 0.5 (g / (5 + 1) + p / 10)
    np.testing.assert_allclose(updates["w"], [[-0.5 / 6 - 0.5, -3.5 / 6 - 1.0]], rtol=1e-6)
    assert state[0].nu["w"].tolist() == [[6.25]] and state[0].mu["w"].tolist() == [[0.5, 3.5]]
    updates, state = tx.update({"w": jnp.zeros((1, 2))}, state, params)
    # m = g / 4 over 3 / 4; v = 75 / 16 over 7 / 16
    step = np.array([[1.0, 7.0]]) / 3 / (np.sqrt(75 / 7) + 1)
    np.testing.assert_allclose(updates["w"], -0.5 * step - [[0.5, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "counts"),
    [
        ("1", (1, 1)),
        ("1 *", (1, 6)),
        ("* 1", (4, 1)),
        ("1 3", (1, 3)),
        ("2 3", (2, 3)),
        ("*", None),
    ],
)
def test_means_are_over_blocks(layout, counts):
    gradient = np.random.default_rng(0).normal(size=(4, 6))
    rows, columns = counts or gradient.shape
    means = (gradient**2).reshape(rows, 4 // rows, columns, 6 // columns).mean((1, 3))
    spread = means.repeat(4 // rows, 0).repeat(6 // columns, 1)
    with jax.enable_x64(True):
        tx = optim.scale_by_adam_mini(eps=0.0, blocks={"w": layout})
        tree = {"w": jnp.asarray(gradient)}
        updates, state = tx.update(tree, tx.init(tree))
        assert state.nu["w"].shape == means.shape
        np.testing.assert_allclose(state.nu["w"], means * 1e-3, rtol=1e-12)
        np.testing.assert_allclose(updates["w"], gradient / np.sqrt(spread), rtol=1e-12)


def test_blocks_of_one_element_are_adam():
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4))}
    gradients = [{"w": jax.random.normal(jax.random.key(i), (3, 4))} for i in range(1, 6)]
    ours, _ = run(optim.adam_mini(0.1, blocks={"w": "*"}, weight_decay=0.1), params, gradients)
    theirs, _ = run(optax.adamw(0.1, weight_decay=0.1), params, gradients)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-4)  # optax's 1 - 0.999 is float32


def test_stacked_layers_equal_a_list_of_them():
    stack = jax.random.normal(jax.random.key(0), (2, 4, 6))
    gradients = jax.random.normal(jax.random.key(1), (3, 2, 4, 6))
    stacked, _ = run(
        optim.adam_mini(0.1, blocks={"w": "* 1 *"}), {"w": stack}, [{"w": g} for g in gradients]
    )
    tx = optim.adam_mini(0.1, blocks={"w/.": "1 *"})
    listed, _ = run(tx, {"w": list(stack)}, [{"w": list(g)} for g in gradients])
    np.testing.assert_allclose(stacked["w"], jnp.stack(listed["w"]), rtol=1e-6)


def transformer():
    d = 8
    names: dict[str, tuple[int, ...]] = {}
    names["embed/embedding"] = (10, d)
    names["embed_out/kernel"] = (d, 10)
    for name in ("query", "value"):
        names[f"block/{name}/kernel"] = (d, d)
    names["block/key/kernel"] = (d, d // 2)
    names["block/key/bias"] = (d // 2,)
    names["block/attn/proj/kernel"] = (d, d)
    names["block/c_attn/kernel"] = (d, 3 * d)
    names["block/MLP/up/kernel"] = (d, 4 * d)
    names["block/mlp/norm/scale"] = (d,)
    names["norm/scale"] = (d,)
    names["lm_head/kernel"] = (d, 10)
    return {name: jnp.ones(shape) for name, shape in names.items()}


def test_the_authors_names():
    assert optim.adam_mini_blocks(dim=8, num_heads=4)(transformer()) == {
        "embed/embedding": "* 1",
        "embed_out/kernel": "1 *",
        "block/query/kernel": "1 4",
        "block/key/kernel": "1 2",  # two key heads for four query heads
        "block/key/bias": "*",
        "block/value/kernel": "1 *",
        "block/attn/proj/kernel": "1 *",
        "block/c_attn/kernel": "1",
        "block/MLP/up/kernel": "1 *",
        "block/mlp/norm/scale": "1",
        "norm/scale": "1",
        "lm_head/kernel": "1 *",
    }


def test_second_moments_take_no_memory():
    """4 bytes a parameter for the momentum; the rest is a number for each neuron or head."""
    params = transformer()
    state = optim.scale_by_adam_mini(blocks=optim.adam_mini_blocks(dim=8, num_heads=4)).init(params)
    expected = 10 + 10 + 4 + 2 + 4 + 8 + 8 + 1 + 32 + 1 + 1 + 10
    assert sum(nu.size for nu in state.nu.values()) == expected
    shapes = jax.tree.map(jnp.shape, state.mu)
    assert shapes == jax.tree.map(jnp.shape, params)


def test_decay_spares_norms_and_biases_by_default():
    params = {
        "ln_f": jnp.ones(2),
        "Norm": jnp.ones(2),
        "q_bias": jnp.ones(2),
        "kernel": jnp.ones(2),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, _ = run(optim.adam_mini(1.0, blocks={}, weight_decay=0.5), params, [zeros])
    assert {name: float(p[0]) for name, p in moved.items()} == {
        "ln_f": 1.0,
        "Norm": 1.0,
        "q_bias": 1.0,
        "kernel": 0.5,
    }
    everything = optim.adam_mini(1.0, blocks={}, weight_decay=0.5, mask=None)
    assert all((p == 0.5).all() for p in run(everything, params, [zeros])[0].values())


def test_schedule_of_the_decay():
    tx = optim.adam_mini(1.0, blocks={}, weight_decay=lambda step: 0.5 * step)
    moved, _ = run(tx, {"w": jnp.ones(2)}, [{"w": jnp.zeros(2)}] * 2)
    assert moved["w"].tolist() == [0.5, 0.5]


def test_defaults_are_the_authors():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(optim.adam_mini).parameters.items()
    }
    assert (defaults["b1"], defaults["b2"], defaults["eps"]) == (0.9, 0.999, 1e-8)
    assert defaults["weight_decay"] == 0.0


@pytest.mark.parametrize("layout", ["1 4", "* 4", "1 * 1", "1 0", "2", "neuron", "", 3, "1 -2"])
def test_blocks_that_do_not_fit_are_named(layout):
    tx = optim.scale_by_adam_mini(blocks={"w": layout})
    with pytest.raises(ValueError, match=r"adam_mini: blocks is .* for 'w' of shape \(4, 6\); acc"):
        tx.init({"w": jnp.zeros((4, 6))})


def test_other_errors_are_named():
    params = {"query": jnp.zeros((8, 8)), "value": jnp.zeros((8, 2, 4))}
    with pytest.raises(ValueError, match="adam_mini: blocks: the pattern 'w' matches no leaf"):
        optim.scale_by_adam_mini(blocks={"w": "1"}).init(params)
    with pytest.raises(ValueError, match="adam_mini: b2 is 1.0; accepted: 0 <= b2 < 1"):
        optim.adam_mini(0.1, blocks={}, b2=1.0)
    with pytest.raises(
        ValueError, match="adam_mini_blocks: num_heads is 0; accepted: num_heads >="
    ):
        optim.adam_mini_blocks(dim=8, num_heads=0)
    blocks = optim.adam_mini_blocks(dim=8, num_heads=3)
    with pytest.raises(ValueError, match=r"'query' has shape \(8, 8\); accepted: .* 8\^2 / 3 elem"):
        blocks({"query": params["query"]})
    with pytest.raises(ValueError, match=r"'value' has shape \(8, 2, 4\); accepted: two axes"):
        blocks({"value": params["value"]})


def test_heads_of_separate_axes_are_declared():
    tx = optim.scale_by_adam_mini(blocks=[("query", "1 2 1"), ("value", "1 * *")])
    nu = tx.init({"query": jnp.zeros((8, 2, 4)), "value": jnp.zeros((8, 2, 4))}).nu
    assert nu["query"].shape == (1, 2, 1) and nu["value"].shape == (1, 2, 4)
