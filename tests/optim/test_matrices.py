"""Layouts, groups, stacks, chunks."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim import matrices

PARAMS = {
    "h": {
        "0": {"up": jnp.zeros((4, 6)), "down": jnp.zeros((6, 4)), "bias": jnp.zeros(6)},
        "1": {"up": jnp.zeros((4, 6)), "down": jnp.zeros((6, 4)), "bias": jnp.zeros(6)},
    },
    "qkv": jnp.zeros((4, 18)),
    "embed": jnp.zeros((10, 4)),
    "none": None,
}
RULES = {"h/.*/(up|down)": "m n", "qkv": "m 3n", "embed": None}


@pytest.mark.parametrize(
    ("rules", "phrase"),
    [
        ({"h/.*/(up|down)": "m n", "embed": None}, "no pattern for the leaf 'qkv' of shape"),
        ({**RULES, "h/0/.*p": "b m n"}, "match one leaf, 'h/0/up', with different"),
        ({**RULES, "heads/.*": "m n"}, "'heads/.\\*' matches no leaf"),
        ({**RULES, "h/.*/bias": "m n"}, "must give b, m or n.*axes \\(6,\\)"),
        ({**RULES, "qkv": "m m"}, "needs an m and an n axis"),
        ({**RULES, "qkv": "m 0n"}, "must give b, m or n"),
        ({**RULES, "qkv": "m 4n"}, "axis of size 18 does not divide as '4n'"),
        ({**RULES, "(": "m n"}, "no regular expression"),
    ],
)
def test_wrong_rules_are_refused_in_one_sentence(rules, phrase):
    with pytest.raises(ValueError, match=f"muon: matrices.*{phrase}"):
        matrices.layouts("muon", PARAMS, rules)


@pytest.mark.parametrize(
    ("shape", "layout", "stacked"),
    [
        ((6, 4), "m n", (1, 4, 6)),
        ((4, 12), "m 3n", (3, 4, 4)),
        ((5, 2, 3), "m b n", (2, 3, 5)),
        ((5, 2, 3), "m n n", (1, 5, 6)),
        ((2, 3, 4, 5), "m m m n", (1, 5, 24)),
        ((7, 4, 6), "b m 3n", (21, 2, 4)),
    ],
)
def test_a_leaf_goes_into_a_stack_and_back(shape, layout, stacked):
    x = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    axes = matrices.matrix_axes(shape, layout)
    stack = matrices.to_matrices(x, axes)
    assert stack.shape == stacked
    np.testing.assert_array_equal(matrices.from_matrices(stack, axes, shape), x)


def test_the_third_of_three_fused_matrices_is_the_third_in_the_stack():
    x = jnp.arange(24.0).reshape(2, 12)
    stack = matrices.to_matrices(x, matrices.matrix_axes((2, 12), "m 3n", transpose=False))
    np.testing.assert_array_equal(stack[2], x[:, 8:])


def test_heads_are_separate_matrices():
    x = jnp.arange(30.0).reshape(5, 2, 3)
    stack = matrices.to_matrices(x, matrices.matrix_axes((5, 2, 3), "m b n", transpose=False))
    np.testing.assert_array_equal(stack[1], x[:, 1])


def test_same_shapes_form_a_group_with_their_transposes():
    groups = matrices.group_matrices("muon", PARAMS, RULES)
    assert [group.shape for group in groups] == [(7, 4, 6)]
    assert [x.path for x in groups[0].members] == [
        "h/0/down",
        "h/0/up",
        "h/1/down",
        "h/1/up",
        "qkv",
    ]
    apart = matrices.group_matrices("muon", PARAMS, RULES, transpose=False)
    assert [group.shape for group in apart] == [(2, 6, 4), (5, 4, 6)]
    with jax.enable_x64(True):
        mixed = {
            "a": jnp.zeros((2, 2), jnp.float32),
            "b": jnp.zeros((2, 2), jnp.bfloat16),
            "c": jnp.zeros((2, 2), jnp.float64),
        }
        names = [group.name for group in matrices.group_matrices("muon", mixed)]
    assert names == ["2x2_float32", "2x2_float64"]


def test_without_rules_the_shape_decides():
    tree = {
        "conv": jnp.zeros((3, 3, 2, 8)),
        "count": jnp.zeros((2, 2), jnp.int32),
        "empty": jnp.zeros((0, 3)),
        "w": jnp.zeros((2, 3)),
    }
    assert matrices.layouts("muon", tree) == ["m m m n", None, None, "m n"]
    assert matrices.layouts("muon", tree, {".*": None}) == [None] * 4
    assert matrices.layouts("muon", {"count": tree["count"]}, {"count": "m n"}) == [None]


def test_masked_leaves_keep_their_paths_and_need_no_rule():
    masked = {**PARAMS, "embed": optax.MaskedNode()}
    [group] = matrices.group_matrices("muon", masked, RULES)
    assert group.shape == (7, 4, 6)
    without = {pattern: layout for pattern, layout in RULES.items() if pattern != "embed"}
    assert matrices.group_matrices("muon", masked, without) == (group,)


@pytest.mark.slow
def test_stack_and_unstack_are_inverse():
    leaves, structure = jax.tree.flatten(PARAMS)
    leaves = [jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    [group] = matrices.group_matrices("muon", structure.unflatten(leaves), RULES)
    doubled = matrices.unstack(group, 2 * matrices.stack(group, leaves), leaves)
    members = {x.position for x in group.members}
    assert len(members) == 5
    for i, (new, old) in enumerate(zip(doubled, leaves, strict=True)):
        np.testing.assert_array_equal(new, 2 * old if i in members else old)


@pytest.mark.parametrize("chunk", [None, 1, 2, 4, 6, 100])
def test_chunks_change_nothing(chunk):
    x = jax.random.normal(jax.random.key(0), (6, 3, 4))
    kernel = matrices.in_chunks(lambda x: jnp.cumsum(x, -1) @ x.mT @ x, chunk)
    np.testing.assert_allclose(kernel(x), jnp.cumsum(x, -1) @ x.mT @ x, rtol=1e-5, atol=1e-5)


def test_a_mesh_axis_that_does_not_exist_is_named():
    with pytest.raises(
        ValueError, match="muon: mesh_axis is 'fsdp', but \\['fsdp'\\] is not among"
    ):
        matrices.check_mesh_axis("muon", "fsdp")
    with jax.set_mesh(jax.make_mesh((1,), ("fsdp",))):
        matrices.check_mesh_axis("muon", "fsdp")
        with pytest.raises(ValueError, match="\\['model'\\] is not among the axes \\('fsdp',\\)"):
            matrices.check_mesh_axis("muon", ("fsdp", "model"))


@pytest.mark.parametrize(
    ("shape", "layout", "stacked"),
    [
        ((2, 3, 4, 5), "m m m n", (1, 2, 3, 4, 5)),
        ((5, 2, 3), "m b n", (2, 5, 3)),
        ((4, 12), "m 3n", (3, 4, 4)),
        ((6,), None, (1, 6)),
        ((), None, (1, 1)),
        ((2, 3), None, (1, 6)),
    ],
)
def test_a_leaf_goes_into_a_stack_of_tensors_and_back(shape, layout, stacked):
    x = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    axes = matrices.mode_axes(shape, layout)
    stack = matrices.to_matrices(x, axes)
    assert stack.shape == stacked
    np.testing.assert_array_equal(matrices.from_matrices(stack, axes, shape), x)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_of_a_tree_that_is_overwritten_and_one_that_is_read(chunk):
    x = {"a": jnp.arange(24.0).reshape(4, 2, 3), "b": jnp.arange(4.0).reshape(4, 1)}
    y = jnp.array([1.0, 2.0, 3.0, 4.0])

    def kernel(x, y):
        return {"a": x["a"] * y[..., None, None], "b": x["b"] + y[..., None]}

    ours = matrices.in_chunks(kernel, chunk)(x, y)
    expected = kernel(x, y)
    np.testing.assert_array_equal(ours["a"], expected["a"])
    np.testing.assert_array_equal(ours["b"], expected["b"])


def test_a_cpu_program_has_one_kernel_for_all_slices_of_a_shape():
    """Where a slice begins is no constant: whatever the compiler makes of one, serves them all."""
    leaves = [jnp.full((4, 6), float(i)) for i in range(5)]
    (group,) = matrices.group_matrices("muon", leaves)

    def there_and_back(leaves):
        return matrices.unstack(group, 2 * matrices.stack(group, leaves), leaves)

    compiled = jax.jit(there_and_back).lower(leaves).compile()
    for i, leaf in enumerate(compiled(leaves)):
        np.testing.assert_array_equal(leaf, 2.0 * i)
    text = compiled.as_text() or ""
    assert "dynamic-slice(" in text and "concatenate(" not in text
    assert {*re.findall(r"slice=\{\[(\d+):", text)} <= {"0"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_slices_begin_where_they_should_whatever_the_numbers(value):
    leaves = [jnp.full((2, 3), value), jnp.ones((3, 2)), jnp.full((2, 3), 2.0)]
    (group,) = matrices.group_matrices("muon", leaves)
    stacked = jax.jit(lambda leaves: matrices.stack(group, leaves))(leaves)
    back = jax.jit(lambda x: matrices.unstack(group, x, leaves))(stacked)
    assert stacked.shape == group.shape
    for leaf, expected in zip(back, leaves, strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_slices_of_a_batch_of_stacks():
    """As a batch of learning rates makes them; the sign that hides them differs inside it."""
    leaves = [jnp.array([[[1.0, 2.0]], [[-1.0, -2.0]]]) + i for i in range(3)]
    (group,) = matrices.group_matrices("muon", [leaf[0] for leaf in leaves])

    def there_and_back(leaves):
        return matrices.unstack(group, 2 * matrices.stack(group, leaves), leaves)

    with jax.numpy_dtype_promotion("strict"):
        back = jax.vmap(there_and_back)(leaves)
    for ours, leaf in zip(back, leaves, strict=True):
        np.testing.assert_array_equal(ours, 2 * leaf)
