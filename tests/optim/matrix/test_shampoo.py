"""Shampoo: against the equations in float64, closed forms, blocks, grafting, sides left out."""

import itertools
import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from tests import pretended_devices

ROOT = pathlib.Path(__file__).parents[3]
SHAPES: dict[str, tuple[int, ...]] = {
    "w": (5, 3),
    "tall": (7, 2),
    "b": (4,),
    "s": (),
    "row": (1, 6),
}


def draw(steps, shapes=None, seed=0):
    """A gradient a step, float64."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    return [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(steps)]


def run(tx, gradients):
    """All updates, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.zeros_like, gradients[0])
        state = tx.init(params)
        update = jax.jit(tx.update)
        updates = []
        for g in gradients:
            u, state = update(jax.tree.map(jnp.asarray, g), state, params)
            updates.append(jax.tree.map(np.asarray, u))
    return updates, state


def assert_close(ours, expected, tolerance=1e-8):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(initial=0))


# The equations, block by block, in NumPy.


def blocks(shape, most):
    """Index of every block of a leaf, sides of size 1 dropped."""
    sides = [range(0, d, most) for d in shape]
    for starts in itertools.product(*sides):
        yield tuple(slice(i, min(i + most, d)) for i, d in zip(starts, shape, strict=True))


def power(a, exponent, eps):
    """(A + eps I)^-exponent."""
    w, q = np.linalg.eigh(a)
    return (q * (np.maximum(w, 0) + eps) ** -exponent) @ q.T


def unfold(x, side):
    return np.moveaxis(x, side, 0).reshape(x.shape[side], -1)


class Block:
    """One block's momentum, factors and roots."""

    def __init__(self, shape):
        self.m = np.zeros(shape)
        self.v = np.zeros(shape)
        self.factors = [np.zeros((d, d)) for d in shape]
        self.roots = [np.eye(d) for d in shape]

    def step(self, g, t, h):
        b1, b2, b3 = h["b1"], h["b2"], h["b3"]
        weight = 1 if b2 == 1 else 1 - b2
        total = 1 if b2 == 1 or not h["bias_correction"] else 1 - b2**t
        for side, factor in enumerate(self.factors):
            self.factors[side] = b2 * factor + weight * unfold(g, side) @ unfold(g, side).T
        if t == h["start"] or (t > h["start"] and t % h["frequency"] == 0):
            exponents = h["exponents"].get(g.ndim, (1 / (2 * g.ndim),) * g.ndim)
            self.roots = [
                power(factor / total, e, h["eps"])
                for factor, e in zip(self.factors, exponents, strict=True)
            ]
        d = b3 * self.m + (1 - b3) * g
        if h["bias_correction"]:
            d = d / (1 - b3 * b1 ** (t - 1))
        self.m = b1 * self.m + (1 - b1) * g
        u = d
        for side, root in enumerate(self.roots):
            u = np.moveaxis(np.tensordot(root, u, (1, side)), 0, side)
        if h["adam"] is None:
            return u
        b, e = h["adam"]
        self.v = b * self.v + (1 - b) * g * g
        f = self.m / (1 - b1**t) / (np.sqrt(self.v / (1 - b**t)) + e)
        return f if t < h["start"] else np.linalg.norm(f) / np.linalg.norm(u) * u


DEFAULTS: dict[str, Any] = {
    "b1": 0.9, "b2": 1.0, "b3": 0.9, "eps": 1e-12, "frequency": 1, "start": None,
    "bias_correction": True, "most": 1024, "exponents": {}, "adam": None,
}  # fmt: skip


def replay(gradients, **changed):
    h = DEFAULTS | changed
    h["start"] = h["frequency"] if h["start"] is None else h["start"]
    leaves = {}
    for name, g in gradients[0].items():
        shape = tuple(d for d in np.shape(g) if d > 1) or (1,)
        places = list(blocks(shape, h["most"]))
        leaves[name] = (shape, [(at, Block(np.zeros(shape)[at].shape)) for at in places])
    updates = []
    for t, gradient in enumerate(gradients, 1):
        update = {}
        for name, (shape, parts) in leaves.items():
            g, u = np.reshape(gradient[name], shape), np.zeros(shape)
            for at, block in parts:
                u[at] = block.step(g[at], t, h)
            update[name] = u.reshape(np.shape(gradient[name]))
        updates.append(update)
    return updates


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the authors' defaults but eps": ({"eps": 1e-6}, {}),
    "averages, rare roots, a late start, blocks": (
        {"b1": 0.8, "b2": 0.95, "b3": 0.6, "eps": 1e-3, "frequency": 2, "start": 3},
        {"max_preconditioner_dim": 2},
    ),
    "no bias correction": ({"b2": 0.9, "eps": 1e-4, "bias_correction": False}, {}),
    "grafting onto Adam, blocks": (
        {"eps": 1e-5, "frequency": 2, "start": 2},
        {"max_preconditioner_dim": 3, "grafting": optax.scale_by_adam(0.9, 0.99, 1e-3)},
    ),
    "one exponent a number of sides": (
        {"eps": 1e-2},
        {"inverse_exponent_override": {1: 0.3, 2: {1: 0.4}}},
    ),
    "Newton's iteration": (
        {"b2": 0.9, "eps": 1e-2, "frequency": 2, "start": 2},
        {"root_method": "newton"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equations_replayed_in_float64(case):
    shared, ours = CASES[case]
    more = {"most": ours.get("max_preconditioner_dim", 1024)}
    if "grafting" in ours:
        more["adam"] = (0.99, 1e-3)
    if "inverse_exponent_override" in ours:
        more["exponents"] = {1: (0.3,), 2: (0.25, 0.4)}
    gradients = draw(6)
    updates, _ = run(optim.scale_by_shampoo(**shared, **ours), gradients)
    # Rounding of factors of rank 1 is multiplied by roots of up to 1000; Newton stops at 1e-6.
    assert_close(updates, replay(gradients, **(shared | more)), 1e-6)


@pytest.mark.slow
def test_layouts_make_stacked_layers_and_fused_kernels_matrices_of_their_own():
    steps = draw(2, {"w": (2, 4, 5)})
    stacked, _ = run(optim.scale_by_shampoo({"w": "b m n"}, eps=1e-6), steps)
    alone, _ = run(
        optim.scale_by_shampoo(eps=1e-6), [{"0": s["w"][0], "1": s["w"][1]} for s in steps]
    )
    for a, b in zip(stacked, alone, strict=True):
        assert_close([a["w"][0], a["w"][1]], [b["0"], b["1"]])
    vector, _ = run(optim.scale_by_shampoo({"w": None}, eps=1e-6), steps)
    flat, _ = run(optim.scale_by_shampoo(eps=1e-6), [{"w": s["w"].reshape(-1)} for s in steps])
    assert_close([u["w"].reshape(-1) for u in vector], [u["w"] for u in flat])


def test_a_tensor_with_a_factor_for_each_side():
    gradients = draw(3, {"w": (3, 2, 4)}, seed=2)
    tx = optim.scale_by_shampoo({"w": "m m n"}, eps=1e-6, merge_dims=False)
    updates, state = run(tx, gradients)
    assert_close(updates, replay(gradients, eps=1e-6), 1e-6)
    assert [x.shape for x in state.roots["3x2x4_float64"]] == [(1, 3, 3), (1, 2, 2), (1, 4, 4)]


# Closed forms.


def test_first_step_is_the_polar_factor():
    """L^(-1/4) G R^(-1/4) = U S^(-1/2) S S^(-1/2) V' when eps vanishes."""
    g = np.random.default_rng(1).normal(size=(5, 3))
    (update,), _ = run(optim.scale_by_shampoo(eps=1e-20), [{"w": g}])
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    np.testing.assert_allclose(update["w"], u @ vt, atol=1e-4)


def test_first_steps_by_hand():
    """Diagonal gradients, exact in float32: L = R = sum of squares, U = sum / sqrt(squares)."""
    tx = optim.shampoo(0.5, b1=0.0, eps=1e-12, weight_decay=0.25)
    params = {"w": jnp.ones((2, 2))}
    state, update = tx.init(params), jax.jit(tx.update)
    updates, state = update({"w": jnp.diag(jnp.array([3.0, -0.5]))}, state, params)
    np.testing.assert_allclose(updates["w"], [[-0.625, -0.125], [-0.125, 0.375]], rtol=1e-5)
    updates, state = update({"w": jnp.diag(jnp.array([4.0, 0.0]))}, state, params)
    # 4 / sqrt(9 + 16) = 0.8, and 0 / 0.5.
    np.testing.assert_allclose(updates["w"], [[-0.525, -0.125], [-0.125, -0.125]], rtol=1e-5)
    np.testing.assert_allclose(
        state[0].factors["2x2_float32"][0][0], np.diag([25, 0.25]), rtol=1e-6
    )


def test_diagonal_gradients_with_b1_make_adagrad_of_the_momentum():
    rng = np.random.default_rng(7)
    gradients = [{"w": np.diag(rng.normal(size=4))} for _ in range(5)]
    updates, _ = run(optim.scale_by_shampoo(b1=0.6, eps=1e-20), gradients)
    m, v = np.zeros(4), np.zeros(4)
    for t, (g, u) in enumerate(zip(gradients, updates, strict=True), 1):
        m, v = 0.6 * m + 0.4 * np.diag(g["w"]), v + np.diag(g["w"]) ** 2
        np.testing.assert_allclose(np.diag(u["w"]), m / (1 - 0.6**t) / np.sqrt(v), rtol=1e-9)


def test_a_vector_is_full_matrix_adagrad():
    """Its first step is g / |g|."""
    gradients = draw(1, {"b": (6,)})
    (update,), _ = run(optim.scale_by_shampoo(), gradients)
    g = gradients[0]["b"]
    np.testing.assert_allclose(update["b"], g / np.linalg.norm(g), rtol=1e-6)


# Grafting, blocks, sides.


def test_grafting_onto_sgd_keeps_its_norm_in_every_block():
    gradients = draw(4, {"w": (5, 4)})
    tx = optim.scale_by_shampoo(
        b1=0.0, eps=1e-6, start=2, grafting=optax.identity(), max_preconditioner_dim=3
    )
    updates, _ = run(tx, gradients)
    assert_close(updates[0], gradients[0], 1e-15)
    for u, g in zip(updates[1:], gradients[1:], strict=True):
        assert np.abs(u["w"] - g["w"]).max() > 0.1
        for at in blocks((5, 4), 3):
            norms = np.linalg.norm(u["w"][at]), np.linalg.norm(g["w"][at])
            np.testing.assert_allclose(*norms, rtol=1e-9)


def test_without_grafting_the_momentum_itself_is_the_update_before_start():
    gradients = draw(3)
    updates, state = run(optim.scale_by_shampoo(b1=0.5, start=3, frequency=2), gradients)
    d = jax.tree.map(lambda a, b: (0.25 * a + 0.5 * b) / 0.75, *gradients[:2])
    assert_close(updates[:2], [gradients[0], d], 1e-14)
    (root,) = state.roots["4_float64"]  # made at step 3
    assert np.abs(np.asarray(root) - np.eye(4)).max() > 0.1


def test_grafting_sees_parameters_and_extra_arguments():
    def update(updates, state, params=None, *, factor, **extra_args):
        return jax.tree.map(lambda g, p: factor * g * p, updates, params), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = optim.scale_by_shampoo(b1=0.0, grafting=inner, start=5)
    g, params = {"w": jnp.ones((2, 2))}, {"w": jnp.full((2, 2), 3.0)}
    updates, _ = tx.update(g, tx.init(params), params, factor=2.0, other=1)
    np.testing.assert_allclose(updates["w"], 6 * np.ones((2, 2)))


def test_equal_blocks_of_all_leaves_are_one_stack():
    params = {"a": jnp.zeros((4, 6)), "b": jnp.zeros((2, 2)), "c": jnp.zeros((3, 2))}
    state = optim.scale_by_shampoo(max_preconditioner_dim=2).init(params)
    shapes = {name: x[0].shape[0] for name, x in state.factors.items()}
    # c is stacked as (2, 3): a block of (2, 2), and (2, 1) that is left.
    assert shapes == {"2x2_float32": 6 + 1 + 1, "2x1_float32": 1}
    whole = optim.scale_by_shampoo(max_preconditioner_dim=math.inf).init(params)
    assert set(whole.factors) == {"4x6_float32", "2x2_float32", "2x3_float32"}


def test_one_sided():
    """An exponent of 0 leaves a side without factor; rows are rows, tall or wide."""
    gradients = draw(1, {"wide": (2, 4), "tall": (4, 2)})
    tx = optim.scale_by_shampoo(eps=1e-8, inverse_exponent_override={2: {0: 0.5, 1: 0.0}})
    (update,), state = run(tx, gradients)
    for name, g in gradients[0].items():
        np.testing.assert_allclose(update[name], power(g @ g.T, 0.5, 1e-8) @ g, rtol=1e-5)
    assert state.factors["2x4_float64"][0].shape == (1, 2, 2)
    assert state.factors["2x4_float64"][1] is None


def test_a_leaf_without_gradient_keeps_its_factors_and_momentum():
    gradients = draw(2, {"a": (3, 2), "b": (3, 2)})
    tx = optim.scale_by_shampoo(b2=0.9)
    with jax.enable_x64(True):
        first, second = (jax.tree.map(jnp.asarray, g) for g in gradients)
        update = jax.jit(tx.update)
        _, state = update(first, tx.init(first))
        updates, after = update({**second, "b": None}, state)
    assert updates["b"] is None and (after.mu["b"] == state.mu["b"]).all()
    for new, old in zip(after.factors["2x3_float64"], state.factors["2x3_float64"], strict=True):
        assert (new[1] == old[1]).all() and (new[0] != old[0]).any()


def test_second_momentum_is_optax_trace_after_the_decay():
    gradients, params = draw(3, {"b": (3,)}), draw(1, {"b": (3,)}, seed=9)[0]
    ours = optim.shampoo(0.1, eps=1e-4, weight_decay=0.2, momentum=0.5, nesterov=True)
    expected = optax.chain(
        optim.scale_by_shampoo(eps=1e-4),
        optax.add_decayed_weights(0.2),
        optax.trace(0.5, nesterov=True),
        optax.scale(-0.1),
    )
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        states = ours.init(params), expected.init(params)
        updates = jax.jit(ours.update), jax.jit(expected.update)
        for g in gradients:
            g = jax.tree.map(jnp.asarray, g)
            (a, one), (b, two) = (
                update(g, state, params) for update, state in zip(updates, states, strict=True)
            )
            states = one, two
            assert_close(a, b, 1e-12)


def test_chunks_and_whole_stacks_agree():
    gradients = draw(3, {"a": (4, 6), "b": (2, 2)})
    each, whole = (
        run(optim.scale_by_shampoo(eps=1e-4, max_preconditioner_dim=2, chunk=n), gradients)[0]
        for n in (1, 100)
    )
    assert_close(each, whole, 1e-9)


def test_defaults_are_the_authors():
    g = draw(4)
    explicit = optim.scale_by_shampoo(
        b1=0.9, b2=1.0, b3=0.9, eps=1e-12, frequency=1, start=1, max_preconditioner_dim=1024,
        bias_correction=True, grafting=None,
    )  # fmt: skip
    assert_close(run(optim.scale_by_shampoo(), g)[0], run(explicit, g)[0], 0)


SHARDED = """
import json, jax, jax.numpy as jnp, numpy as np, optax, optim
from jax.sharding import NamedSharding, PartitionSpec as P
rng = np.random.default_rng(0)
gradients = {"w": jnp.float32(rng.normal(size=(8, 6))), "b": jnp.float32(rng.normal(size=5))}
def run(axis, gradients):
    tx = optim.scale_by_shampoo(
        b2=0.9, eps=1e-2, max_preconditioner_dim=4, grafting=optax.scale_by_rms(), mesh_axis=axis
    )
    def steps(g):
        state = tx.init(g)
        for _ in range(2):
            u, state = tx.update(g, state, g)
        return u, state
    return jax.jit(steps)(gradients)
alone, _ = run(None, gradients)
mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
with jax.set_mesh(mesh):
    spread = {name: jax.device_put(g, NamedSharding(mesh, P())) for name, g in gradients.items()}
    spread["w"] = jax.device_put(gradients["w"], NamedSharding(mesh, P("x")))
    ours, state = run("x", spread)
print(json.dumps({
    "errors": [float(abs(np.asarray(ours[k]) - np.asarray(alone[k])).max()) for k in alone],
    "blocks": {name: x[0].shape[0] for name, x in state.roots.items()},
    "specs": sorted({str(x.sharding.spec[0]) for x in jax.tree.leaves(state.roots)}),
}))
"""


@pytest.mark.slow
def test_blocks_spread_over_four_devices():
    """Two blocks a group, or one, are padded to four; every device has its own."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=ROOT,
        env=pretended_devices.environment(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert max(report["errors"]) < 1e-5, report
    names = ("4x4_float32", "2x4_float32", "4_float32", "1_float32")
    assert report["blocks"] == dict.fromkeys(names, 4)
    assert report["specs"] == ["x"]


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"b1": 1.0}, "b1 is 1.0; accepted: 0 <= b1 < 1"),
        ({"b2": 1.1}, "b2 is 1.1; accepted: 0 <= b2 <= 1"),
        ({"b3": -0.1}, "b3 is -0.1; accepted: 0 <= b3 < 1"),
        ({"eps": 0}, "eps is 0; accepted: eps > 0"),
        ({"frequency": 0}, "frequency is 0; accepted: frequency >= 1"),
        ({"frequency": 5, "start": 4}, "start is 4; accepted: at least frequency, 5"),
        ({"max_preconditioner_dim": 0}, "max_preconditioner_dim is 0; accepted: a whole number"),
        ({"max_preconditioner_dim": 2.5}, "max_preconditioner_dim is 2.5; accepted: a whole"),
        ({"inverse_exponent_override": {2: -0.5}}, "inverse_exponent_override of 2 sides is -0.5"),
        ({"inverse_exponent_override": {1: {1: 0.5}}}, "such for sides from 0 to 0"),
        ({"root_method": "qr"}, "method is 'qr'; accepted: 'eigh', 'newton'"),
        (
            {"root_method": "newton", "inverse_exponent_override": {2: 0.4}},
            "p is 2.5; accepted by method 'newton': a whole p > 0",
        ),
        ({"mesh_axis": "x"}, r"mesh_axis is 'x', but \['x'\] is not among the axes"),
    ],
)
def test_errors(arguments, phrase):
    with pytest.raises(ValueError, match=f"shampoo: .*{phrase}"):
        optim.scale_by_shampoo(**arguments).init({"w": jnp.ones((2, 2))})


def test_second_momentum_outside_its_range_is_an_error():
    with pytest.raises(ValueError, match="shampoo: momentum is 1.0; accepted: 0 <= momentum < 1"):
        optim.shampoo(0.1, momentum=1.0)
