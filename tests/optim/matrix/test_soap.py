"""SOAP: steps by hand, a NumPy replay, special cases, stacks, missing leaves, meshes."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from experiments.tpu_slice import libtpu_folder, run_python
from tests import pretended_devices

ROOT = pathlib.Path(__file__).parents[3]


def run(tx, params, gradients):
    """Parameters after the steps, and the last state, compiled."""

    @jax.jit
    def walk(params, gradients):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optim.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), gradients)[0]

    return walk(params, gradients)


def draw(seed, steps, **shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(steps, *shape)) for name, shape in shapes.items()}


def turned(x, bases):
    """Every side of x, one after another, multiplied by the transpose of its basis."""
    for q in bases:
        x = np.moveaxis(x, 0, -1) if q is None else np.tensordot(x, q, ([0], [0]))
    return x


def replay(
    p, gradients, lr, b1, b2, sb, eps, wd, frequency, longest=99, normalize=False, correct=True
):
    """The equations, for one tensor in NumPy."""
    sides = range(p.ndim)

    def gram(g, side):
        x = np.moveaxis(g, side, 0).reshape(g.shape[side], -1)
        return x @ x.T

    m, v = np.zeros_like(p), np.zeros_like(p)
    factors = [(1 - sb) * gram(gradients[0], i) if p.shape[i] <= longest else None for i in sides]
    bases = [None if f is None else np.linalg.eigh(f)[1][:, ::-1] for f in factors]
    for t, g in enumerate(gradients[1:], 1):
        h = turned(g, bases)
        m, v = b1 * m + (1 - b1) * h, b2 * v + (1 - b2) * h**2
        back = [None if q is None else q.T for q in bases]
        u = turned(m / (np.sqrt(v) + eps), back)
        u = u / np.sqrt(np.mean(u**2)) if normalize else u
        u = u * np.sqrt(1 - b2**t) / (1 - b1**t) if correct else u
        p = (p - lr * u) * (1 - lr * wd)
        for i, f in enumerate(factors):
            if f is not None:
                factors[i] = sb * f + (1 - sb) * gram(g, i)
        if t % frequency == 0:
            m = turned(m, back)
            for i, (f, q) in enumerate(zip(factors, bases, strict=True)):
                if f is not None and q is not None:
                    order = np.argsort(-np.diag(q.T @ f @ q))
                    v, q = np.take(v, order, i), q[:, order]
                    bases[i] = np.linalg.qr(f @ q)[0]
            m = turned(m, bases)
    return p


# The rule.


def test_first_steps_by_hand():
    """Diagonal gradients: bases are the axes, sorted; everything is Adam's on two numbers."""
    tx = optim.soap(0.5, b1=0.5, b2=0.75, eps=0.5, weight_decay=0.25, frequency=1)
    params = jnp.array([[8.0, 0.0], [0.0, 8.0]])
    state = tx.init(params)
    updates, state = tx.update(jnp.diag(jnp.array([1.0, 3.0])), state, params)
    assert updates.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    [stack] = state[0].stacks.values()
    np.testing.assert_allclose(stack.factors[0][0], np.diag([0.25, 2.25]), rtol=1e-6)
    np.testing.assert_allclose(np.abs(stack.bases[0][0]), [[0, 1], [1, 0]], atol=1e-7)
    # m = g / 2, v = g^2 / 4; u = m / (sqrt(v) + 1/2) sqrt(1/4) / (1/2) = m / (m + 1/2).
    updates, state = tx.update(jnp.diag(jnp.array([4.0, 2.0])), state, params)
    arrived = 8.0 - 0.5 * np.array([2 / 2.5, 1 / 1.5])
    expected = arrived * (1 - 0.5 * 0.25) - 8.0
    np.testing.assert_allclose(np.diag(updates), expected, rtol=1e-6)
    # L = 3/4 L + g g'/4 = (3/16 + 4, 27/16 + 1): the refresh sorts the other way round.
    [stack] = state[0].stacks.values()
    np.testing.assert_allclose(stack.factors[1][0], np.diag([4.1875, 2.6875]), rtol=1e-6)
    np.testing.assert_allclose(np.abs(stack.bases[0][0]), np.eye(2), atol=1e-6)
    np.testing.assert_allclose(stack.nu[0], np.diag([4.0, 1.0]), atol=1e-6)
    np.testing.assert_allclose(np.abs(stack.mu[0]), np.diag([2.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((6, 6), {}),
        ((6, 6), {"normalize": True}),
        ((6, 6), {"bias_correction": False}),
        ((9, 4), {"max_precond_dim": 4}),
        ((2, 3, 4), {}),
    ],
)
def test_agrees_with_numpy_in_float64(shape, arguments):
    gradients = draw(0, 9, w=shape)["w"]
    start = np.random.default_rng(1).normal(size=shape)
    options = {
        {"max_precond_dim": "longest", "bias_correction": "correct"}.get(key, key): value
        for key, value in arguments.items()
    }
    expected = replay(start, gradients, 0.1, 0.8, 0.9, 0.7, 1e-3, 0.2, 3, **options)
    with jax.enable_x64(True):
        tx = optim.soap(
            0.1, b1=0.8, b2=0.9, shampoo_beta=0.7, eps=1e-3, weight_decay=0.2, frequency=3,
            **arguments,
        )  # fmt: skip
        ours, _ = run(tx, jnp.asarray(start), jnp.asarray(gradients))
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-11)


def test_a_vector_is_adams_and_skips_the_first_step():
    gradients = draw(0, 6, b=(5,))
    params = {"b": jnp.ones(5)}
    ours, state = run(optim.soap(0.1, eps=1e-12, weight_decay=0.0), params, gradients)
    adam = optax.adam(0.1, b1=0.95, b2=0.95, eps=1e-12)
    theirs, _ = run(adam, params, {"b": gradients["b"][1:]})
    np.testing.assert_allclose(ours["b"], theirs["b"], rtol=1e-4)
    assert not state[0].stacks and int(state[0].step) == 6


def test_a_preconditioned_vector_equals_a_matrix_of_one_column():
    gradients = draw(0, 6, b=(5,))["b"]
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]

    def walk(shape, bases):
        tx = optim.soap(0.1, frequency=2, precondition_1d=True, initial_basis={"": bases})
        return run(tx, jnp.ones(shape), gradients.reshape(6, *shape))[0].ravel()

    np.testing.assert_allclose(walk((5,), [basis]), walk((5, 1), [basis, None]), rtol=1e-4)


def test_a_basis_of_axes_without_refresh_is_adam():
    gradients = draw(0, 6, w=(3, 4))
    params = {"w": jnp.ones((3, 4))}
    tx = optim.soap(
        0.1, eps=1e-12, weight_decay=0.0, frequency=100, initial_basis=lambda f: jnp.eye(len(f))
    )
    ours, _ = run(tx, params, gradients)
    adam = optax.adam(0.1, b1=0.95, b2=0.95, eps=1e-12)
    theirs, _ = run(adam, params, {"w": gradients["w"][1:]})
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-4)


def test_rotated_coordinates_give_the_rotated_step():
    """What sets SOAP apart from Adam: it does not see the axes."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(8, 5, 5))
    u, v = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
    with jax.enable_x64(True):
        tx = optim.soap(0.1, frequency=3, weight_decay=0.1)
        start = jnp.asarray(rng.normal(size=(5, 5)))
        plain, _ = run(tx, start, jnp.asarray(gradients))
        other, _ = run(tx, u @ start @ v, jnp.asarray(u @ gradients @ v))
        np.testing.assert_allclose(other, u @ plain @ v, rtol=1e-8, atol=1e-9)


# Stacks.


def test_layers_in_a_list_equal_layers_in_a_stack():
    gradients = draw(0, 8, w0=(4, 4), w1=(4, 4), w2=(4, 4))
    params = {name: jnp.ones((4, 4)) for name in gradients}
    apart, state = run(optim.soap(0.1, frequency=3), params, gradients)
    assert [s.mu.shape for s in state[0].stacks.values()] == [(3, 4, 4)]
    stacked = np.stack(list(gradients.values()), 1)
    tx = optim.soap(0.1, frequency=3, matrices={"": "b m n"})
    together, _ = run(tx, jnp.ones((3, 4, 4)), stacked)
    np.testing.assert_allclose(together, jnp.stack(list(apart.values())), rtol=1e-4)


def test_a_tall_matrix_moves_as_its_transpose_and_alone_as_in_company():
    gradients = draw(0, 8, w=(4, 7))
    bases = [np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0] for d in (4, 7)]
    given = {"w": bases, "t": bases[::-1]}
    tx = optim.soap(0.1, frequency=3, initial_basis=given)
    both = {"w": gradients["w"], "t": gradients["w"].swapaxes(1, 2)}
    ours, state = run(tx, {"w": jnp.ones((4, 7)), "t": jnp.ones((7, 4))}, both)
    assert list(state[0].stacks) == ["4x7_float32"]
    np.testing.assert_allclose(ours["w"], ours["t"].T, rtol=1e-5)
    alone, _ = run(tx, {"w": jnp.ones((4, 7))}, gradients)
    np.testing.assert_allclose(ours["w"], alone["w"], rtol=1e-4)


def test_a_convolution_has_four_sides_or_two():
    params = {"k": jnp.ones((3, 2, 4, 5))}
    sides = optim.scale_by_soap().init(params).stacks
    assert [s.factors[i].shape for s in sides.values() for i in range(4)] == [
        (1, d, d) for d in (3, 2, 4, 5)
    ]
    assert list(optim.scale_by_soap(merge_dims=True).init(params).stacks) == ["5x24_float32"]


def test_a_long_side_has_no_basis_and_two_long_sides_leave_adam():
    state = optim.scale_by_soap(max_precond_dim=8).init(
        {"a": jnp.ones((8, 9)), "b": jnp.ones((9, 9)), "c": jnp.ones((1, 9))}
    )
    [(name, stack)] = state.stacks.items()
    assert name == "8x9_float32" and stack.factors[1] is None and stack.bases[1] is None
    assert state.mu["a"] is None and state.mu["b"].shape == (9, 9) and state.mu["c"].size == 9


def test_zero_gradients_leave_bases_orthonormal():
    params = jnp.ones((3, 4))
    _, state = run(optim.soap(0.1, frequency=1), params, jnp.zeros((4, 3, 4)))
    [stack] = state[0].stacks.values()
    for q in stack.bases:
        np.testing.assert_allclose(q[0].T @ q[0], np.eye(len(q[0])), atol=1e-6)


def test_a_restored_state_goes_on_between_two_refreshes():
    gradients = jnp.asarray(draw(0, 9, w=(4, 4))["w"], jnp.float32)
    tx = optim.soap(0.1, frequency=4)
    params = jnp.ones((4, 4))
    whole, _ = run(tx, params, gradients)
    update = jax.jit(tx.update)
    state = tx.init(params)
    for i, gradient in enumerate(gradients):
        if i == 6:  # the counter is 6, refreshes are at 4 and 8
            state = jax.tree.map(lambda x: jnp.asarray(np.array(x)), state)
        updates, state = update(gradient, state, params)
        params = optim.apply_updates(params, updates)
    np.testing.assert_allclose(params, whole, rtol=1e-5)


@pytest.mark.slow
def test_a_leaf_without_gradient_keeps_its_place_in_the_stack():
    gradients = draw(0, 5, a=(4, 4), b=(4, 4))
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    tx = optim.soap(0.1, frequency=2)
    state = tx.init(params)
    for i in range(5):
        g = {name: jnp.asarray(x[i], jnp.float32) for name, x in gradients.items()}
        updates, new = tx.update({**g, "b": None}, state, params)
        assert updates["b"] is None
        [old_stack], [new_stack] = state[0].stacks.values(), new[0].stacks.values()
        for x, y in zip(jax.tree.leaves(old_stack), jax.tree.leaves(new_stack), strict=True):
            np.testing.assert_array_equal(x[1], y[1])
        params, state = optim.apply_updates(params, updates), new
    alone, _ = run(tx, jnp.ones((4, 4)), gradients["a"])
    np.testing.assert_allclose(params["a"], alone, rtol=1e-4)
    np.testing.assert_array_equal(params["b"], np.ones((4, 4)))


@pytest.mark.slow
def test_gradients_of_another_dtype_go_by_the_parameters():
    params = {"w": jnp.ones((3, 3), jnp.bfloat16)}
    tx = optim.scale_by_soap()
    state = tx.init(params)
    with jax.enable_x64(True):
        wide = {"w": jnp.ones((3, 3), jnp.float64)}
        assert tx.update(wide, state, params)[0]["w"].dtype == jnp.float32
        with pytest.raises(ValueError, match="soap: the gradient has tensors .'3x3_float64'., the"):
            tx.update(wide, state)


def test_the_mask_chooses_what_decays_and_the_first_step_does_not():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), params)
    tx = optim.soap(lambda t: 0.5 * t, weight_decay=0.5, mask={"w": True, "b": False})
    moved, _ = run(tx, params, zeros)
    assert (moved["b"] == 1).all()
    np.testing.assert_allclose(moved["w"], (1 - 0.5 * 0.5) * (1 - 1.0 * 0.5))


def test_defaults_are_the_authors():
    ours = optim.soap(3e-3)
    named = optim.soap(
        3e-3, b1=0.95, b2=0.95, shampoo_beta=0.95, eps=1e-8, weight_decay=0.01, frequency=10,
        max_precond_dim=10_000, merge_dims=False, precondition_1d=False, normalize=False,
        bias_correction=True,
    )  # fmt: skip
    gradients = draw(0, 12, w=(3, 3), b=(3,))
    params = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
    for a, b in zip(
        jax.tree.leaves(run(ours, params, gradients)),
        jax.tree.leaves(run(named, params, gradients)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"b1": 1.0}, "b1 is 1.0; accepted: 0 <= b1 < 1"),
        ({"b2": -0.1}, "b2 is -0.1; accepted"),
        ({"shampoo_beta": 2}, "shampoo_beta is 2; accepted"),
        ({"eps": -1e-8}, "eps is -1e-08; accepted: eps >= 0"),
        ({"frequency": 0}, "frequency is 0; accepted: frequency >= 1"),
        ({"max_precond_dim": 0}, "max_precond_dim is 0; accepted"),
        ({"column_axis": "tensor"}, "column_axis is 'tensor' without a mesh_axis; give both"),
        ({"mesh_axis": "fsdp"}, "mesh_axis is 'fsdp', but"),
        ({"matrices": {"w": "m q"}}, "must give b, m or n"),
        ({"initial_basis": {}}, "initial_basis has shapes .. for 'w', whose sides are .2, 3."),
        ({"initial_basis": {"w": [np.eye(2), None]}}, "accepted: for each side a .d, d. basis"),
    ],
)
def test_what_cannot_be_is_named(arguments, phrase):
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=f"^soap: .*{phrase}"):
        tx = optim.soap(0.1, **arguments)
        tx.update(params, tx.init(params), params)


def test_decay_without_parameters_is_an_error():
    tx = optim.soap(0.1)
    with pytest.raises(ValueError, match="soap: params is None; call update"):
        tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))


# Meshes.

SHARDED = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import optim

mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
shapes = {"query": (8, 8), "up": (8, 16), "down": (16, 8), "odd": (8, 5), "bias": (16,)}
params = {name: jnp.ones(shape) for name, shape in shapes.items()}
gradients = [
    {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    for _ in range(6)
]
specs = {"query": P("fsdp", "tensor"), "up": P("fsdp", "tensor"), "down": P("tensor", "fsdp"),
         "odd": P("fsdp"), "bias": P("fsdp")}
shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
# A first factor of a long side has no full rank: both runs start from the same bases.
bases = {name: [np.linalg.qr(rng.normal(size=(d, d)))[0] for d in shape]
         for name, shape in shapes.items() if len(shape) == 2}

def run(tx, place):
    p, update = place(params), jax.jit(tx.update)
    state = jax.jit(tx.init)(p)
    for gradient in gradients:
        updates, state = update(place(gradient), state, p)
        p = optim.apply_updates(p, updates)
    return p, state

expected, _ = run(optim.soap(0.1, frequency=2, initial_basis=bases), lambda tree: tree)
out = {}
for axes in ({"mesh_axis": "fsdp", "column_axis": "tensor"}, {"mesh_axis": ("fsdp", "tensor")}):
    with jax.set_mesh(mesh):
        tx = optim.soap(0.1, frequency=2, initial_basis=bases, **axes)
        got, state = run(tx, lambda tree: jax.device_put(tree, shardings))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    stack = state[0].stacks["8x16_float32"]
    out[str(axes)] = {
        "error": max(float(jnp.abs(a - b).max()) for a, b in pairs),
        "specs": [list(x.sharding.spec) for x in jax.tree.leaves(stack)],
        "stack": stack.mu.shape,
    }
print(json.dumps(out))
"""


@pytest.mark.slow
def test_sharded_equals_unsharded_on_eight_devices():
    """1, 2 and 1 matrices on 4 or 8 devices: groups are padded; six steps of 0.1, two refreshes."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=ROOT,
        env=pretended_devices.environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sharded = json.loads(done.stdout.splitlines()[-1])
    assert len(sharded) == 2 and all(told["error"] < 1e-4 for told in sharded.values()), sharded
    columns, whole = sharded.values()
    assert columns["specs"] == [["fsdp", None, "tensor"]] * 6 and columns["stack"] == [4, 8, 16]
    assert whole["specs"] == [[["fsdp", "tensor"]]] * 6 and whole["stack"] == [8, 8, 16]


# A TPU.

COMPILED = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import optim
from experiments.tpu_slice import slice_mesh

place = NamedSharding(slice_mesh("v5e:2x2", (1,), ("x",)), P())
tx = optim.scale_by_soap()
params = {name: jnp.zeros((1024, 1024)) for name in "abcd"}
params, state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    (params, jax.eval_shape(tx.init, params)),
)
step = jax.jit(tx.update, donate_argnums=(0, 1)).lower(params, state, params).compile()
text = step.as_text()
assert "f32[4,1024,1024]" in text
used = step.memory_analysis().temp_size_in_bytes / (4 * 1024**2)
assert used < 12, f"{used} bytes a parameter"
"""


@pytest.mark.slow
def test_a_step_with_first_bases_and_refresh_compiles_for_a_tpu():
    """By jnp.linalg.eigh the first step alone is a compilation of many minutes."""
    if libtpu_folder() is None:
        pytest.skip("libtpu, the compiler, is not installed")
    assert run_python(["-c", COMPILED]) == 0
