"""Tests of optim/trees.py: labels by path, keys by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim import trees
from optim.trees import named_key

TREE = {"blocks": {"query": {"kernel": 1, "bias": 2}}, "head": [3, 4], "absent": None}


def test_labels_follow_the_patterns():
    labels = optim.path_labels(TREE, {r".*/kernel": "m", r".*/bias|head/\d": "v"})
    assert labels == {
        "blocks": {"query": {"kernel": "m", "bias": "v"}},
        "head": ["v", "v"],
        "absent": None,
    }


def test_the_default_is_for_the_rest():
    labels = optim.path_labels(TREE, [("head/0", 1)], default=0)
    assert labels["head"] == [1, 0] and labels["blocks"]["query"] == {"kernel": 0, "bias": 0}


@pytest.mark.parametrize(
    ("rules", "phrase"),
    [
        (
            {".*": 1, "tail": 2},
            r"'tail' matches no leaf; the paths are: absent, blocks/query/bias",
        ),
        ({"kernel": 1, ".*": 2}, "'kernel' matches no leaf"),
        ({".*": 1, "head/.*": 2}, r"'\.\*' and 'head/\.\*' match one leaf, 'head/0'"),
        ({"head/.*": 1}, "no pattern matches the leaf 'blocks/query/bias'"),
        ({"[": 1}, r"'\[' is no regular expression"),
    ],
)
def test_unmatched_and_doubly_matched_leaves_are_named(rules, phrase):
    with pytest.raises(ValueError, match=f"path_labels: rules: .*{phrase}") as caught:
        optim.path_labels(TREE, rules)
    assert "\n" not in str(caught.value)


def test_two_patterns_may_agree():
    assert optim.path_labels({"a": 1}, {"a": "x", ".": "x"}) == {"a": "x"}


def test_many_paths_are_cut_short():
    with pytest.raises(ValueError, match="and 88 more"):
        optim.path_labels([0] * 100, {"x": 1})


def test_absent_leaves_keep_their_paths_and_need_no_label():
    tree = {"a": jnp.ones(2), "b": optax.MaskedNode(), "c": None, "d": optax.MaskedNode()}
    labels = optim.path_labels(tree, {"a": 1, "b": 2, "c": 3})
    assert labels == {**tree, "a": 1}


def test_labels_inside_a_group_of_partition():
    """The inner labels see the leaves of the other group masked."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2), "frozen": jnp.ones(2)}

    def inner_labels(tree):
        return optim.path_labels(tree, {"w": "lion", "b": "sgd"})

    inner = optax.partition({"lion": optim.lion(0.5), "sgd": optax.sgd(0.25)}, inner_labels)
    tx = optax.partition(
        {"on": inner, "off": optax.set_to_zero()}, {"w": "on", "b": "on", "frozen": "off"}
    )
    updates, _ = tx.update(jax.tree.map(lambda p: 2 * p, params), tx.init(params), params)
    assert {name: float(u.ravel()[0]) for name, u in updates.items()} == {
        "w": -0.5,
        "b": -0.5,
        "frozen": 0.0,
    }
    only_masked = optax.masked(inner, {"w": True, "b": False, "frozen": False})
    assert only_masked.init(params)


def test_labels_serve_map_params_which_starts_from_an_empty_tree():
    params = {"w": jnp.ones(2)}
    tx = optax.partition({"a": optim.lion(0.1)}, lambda tree: optim.path_labels(tree, {"w": "a"}))
    doubled = optax.tree.map_params(tx, lambda m: m + 1, tx.init(params))
    assert jax.tree.leaves(doubled)[0].tolist() == [1.0, 1.0]


def test_the_labels_serve_partition_and_masked():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    labels = optim.path_labels(params, {"w": "lion", "b": "frozen"})
    tx = optax.partition({"lion": optim.lion(0.1), "frozen": optax.set_to_zero()}, labels)
    updates, _ = tx.update(params, tx.init(params), params)
    assert float(updates["w"][0, 0]) == pytest.approx(-0.1) and float(updates["b"][0]) == 0.0


def test_names_draw_apart_and_are_stable():
    key = jax.random.key(0)
    drawn = {name: int(jax.random.bits(named_key(key, name))) for name in ("a", "b", "a/b")}
    assert len({*drawn.values()}) == 3
    assert int(jax.random.bits(named_key(jax.random.key(0), "a"))) == drawn["a"]


def test_map_leaves_leaves_the_state_of_absent_gradients_alone():
    updates = {"a": jnp.ones(2, jnp.bfloat16), "b": None, "c": None}
    state = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.full(2, 7.0), "c": None}
    seen = []

    def rule(g, m, p):
        seen.append((g.dtype, m.dtype, p.dtype))
        return g + m + p, 2 * m

    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None}
    new, (mu,) = trees.map_leaves(rule, updates, (state,), params)
    assert seen == [(jnp.float32,) * 3]
    assert new["a"].tolist() == [3, 3] and new["b"] is None and new["c"] is None
    assert mu["a"].dtype == jnp.bfloat16 and mu["a"].tolist() == [2, 2]
    assert mu["b"] is state["b"] and mu["c"] is None


def test_map_leaves_of_an_empty_tree_is_empty():
    assert trees.map_leaves(lambda g, m: (g, m), {}, ({},)) == ({}, ({},))


def test_checks_name_the_argument_and_pass_traced_values():
    with pytest.raises(ValueError, match="^adam: b2 is 1.0; accepted: 0 <= b2 < 1.$"):
        trees.check_fractions("adam", b1=0.9, b2=1.0)
    with pytest.raises(ValueError, match="^adam: eps is nan; accepted: eps >= 0.$"):
        trees.check_at_least("adam", 0, eps=float("nan"))
    jax.jit(lambda b: trees.check_fractions("adam", b1=b))(2.0)


def test_float_copy_widens_copies_and_leaves_out_what_is_no_float():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3), "n": jnp.arange(2), "none": None}
    copy = trees.float_copy(tree)
    assert copy["a"].dtype == copy["b"].dtype == jnp.float32
    assert copy["b"].unsafe_buffer_pointer() != tree["b"].unsafe_buffer_pointer()
    assert isinstance(copy["n"], optax.MaskedNode) and copy["none"] is None


def test_norm_is_that_of_all_leaves_together_whatever_their_dtypes():
    tree = {"a": jnp.full(2, 2.0, jnp.bfloat16), "b": jnp.full((2, 2), 2.0), "none": None}
    tree["unused"] = np.zeros(3, jax.dtypes.float0)
    with jax.numpy_dtype_promotion("strict"):
        assert float(trees.norm(tree)) == np.float32(24**0.5)
        assert float(trees.norm({})) == 0.0
    assert float(trees.norm(jnp.full(300, 1.0, jnp.bfloat16))) == np.float32(300**0.5)


def test_bias_correction_is_exact_to_float32():
    steps = np.array([1, 2, 10, 100, 10_000])
    for decay in (0.9, 0.999, 0.9999):
        ours = [trees.bias_correction(decay, jnp.int32(t), jnp.dtype("float32")) for t in steps]
        np.testing.assert_allclose(ours, 1 - decay**steps, rtol=5e-7)
    assert trees.bias_correction(0.0, jnp.int32(1), jnp.dtype("float32")) == 1
    traced = jax.jit(lambda b: trees.bias_correction(b, jnp.int32(3), jnp.dtype("float32")))
    np.testing.assert_allclose(traced(0.5), 0.875, rtol=1e-6)
    assert traced(0.0) == 1


def test_trust_ratio_is_one_without_a_norm():
    three, zero = jnp.array([3.0, 4.0]), jnp.zeros(2)
    assert trees.trust_ratio(three, 2 * three) == 2 and trees.trust_ratio(three, three, 0.5) == 0.5
    assert trees.trust_ratio(zero, three, 0.5) == trees.trust_ratio(three, zero, 0.5) == 1
    assert jax.grad(lambda u: trees.trust_ratio(u, three))(three).tolist() == pytest.approx(
        [-3 / 25, -4 / 25]
    )


def test_masks_are_spread_over_the_tree():
    tree = {"a": [1.0, 2.0], "b": 3.0, "none": None, "masked": optax.MaskedNode()}
    everything = {"a": [True, True], "b": True, "none": None, "masked": optax.MaskedNode()}
    assert trees.mask_like(tree, None) == trees.mask_like(tree, True) == everything
    prefix = {"a": False, "b": True, "none": False, "masked": True}
    chosen = {**everything, "a": [False, False]}
    assert trees.mask_like(tree, prefix) == trees.mask_like(tree, lambda _: prefix) == chosen


def test_decay_is_added_in_float32_where_the_mask_and_a_gradient_are():
    params = {name: jnp.full(2, 3.015625, jnp.bfloat16) for name in "abc"}
    mask = {"a": True, "b": True, "c": False}
    tx = trees.add_decayed_weights(lambda step: 0.1 * (step + 1), mask)
    gradients = {"a": jnp.ones(2), "b": None, "c": jnp.ones(2)}
    updates, state = tx.update(gradients, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], 1 + 0.1 * 3.015625, rtol=1e-6)
    assert updates["b"] is None and updates["c"].tolist() == [1, 1]
    updates, _ = tx.update(gradients, state, params)
    np.testing.assert_allclose(updates["a"], 1 + 0.2 * 3.015625, rtol=1e-6)
