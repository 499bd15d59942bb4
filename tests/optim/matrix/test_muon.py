"""Muon: steps by hand, layouts, stacks, chunks, the auxiliary optimizer, meshes."""

import json
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


def draw(seed, shapes):
    """Arrays of these shapes, a tree."""
    structure: Any
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(seed)
    return structure.unflatten([jnp.asarray(rng.normal(size=s), jnp.float32) for s in leaves])


def first_update(gradient, **arguments):
    tx = optim.scale_by_muon(dtype=None, **arguments)
    return jax.jit(lambda g: tx.update(g, tx.init(g))[0])(gradient)


def assert_close(ours, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


# The rule.


def test_first_two_steps_by_hand():
    """A multiple of a matrix with orthonormal rows stays one, so one number tells all."""
    g = jnp.array([[2.0, 0, 0], [0, 0, 2.0]])
    tx = optim.muon(
        0.5, b1=0.5, coefficients=((1.0, 0.0, 0.0), (2.0, -1.0, 0.0)), eps=1.0, weight_decay=0.25,
        dtype=None,
    )  # fmt: skip
    params = jnp.ones((2, 3))
    state = tx.init(params)
    # M = 1/2 G; U = 1/4 G + 1/2 G = 3/4 G, of norm 3/4 sqrt(8); s = 3/2 / (norm + 1).
    updates, state = tx.update(g, state, params)
    s = 1.5 / (0.75 * 8**0.5 + 1)
    direction = (1.5**0.5) * (2 * s - s**3)  # scale: 3 columns, 2 rows
    expected = -0.5 * (direction * g / 2 + 0.25)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    np.testing.assert_allclose(state[0].mu, g / 2, rtol=1e-6)
    # M = 3/4 G; U = 7/8 G.
    updates, state = tx.update(g, state, params)
    s = 1.75 / (0.875 * 8**0.5 + 1)
    expected = -0.5 * ((1.5**0.5) * (2 * s - s**3) * g / 2 + 0.25)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    np.testing.assert_allclose(state[0].mu, 0.75 * g, rtol=1e-6)


def test_many_steps_give_the_polar_factor():
    g = draw(0, (6, 9))
    cubic = ((1.5, -0.5, 0.0),) * 25
    u, _, vt = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
    assert_close(first_update(g, coefficients=cubic, scale=lambda rows, columns: 1.0), u @ vt)


def test_without_bias_correction_it_is_optax_without_nesterov():
    """optax's correction is a factor then, which Newton-Schulz forgets."""
    gradients = draw(0, (4, 5, 8))
    theirs = optax.contrib.scale_by_muon(
        nesterov=False,
        eps=1e-7,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(0, 1),
    )
    ours = optim.scale_by_muon(nesterov=False, dtype=None)
    a, b = ours.init(gradients[0]), theirs.init(gradients[0])
    for g in gradients:
        u, a = ours.update(g, a)
        v, b = theirs.update(g, b)
        np.testing.assert_allclose(u, (8 / 5) ** 0.5 * v, atol=2e-5)


def test_heavy_ball_is_the_same_with_a_scaled_eps():
    """Moonlight's momentum, by hand, in float64."""
    with jax.enable_x64(True):
        gradients = np.random.default_rng(0).normal(size=(3, 4, 7))
        tx = optim.scale_by_muon(b1=0.8, scale="moonlight", eps=1e-2 * 0.2, dtype=None)
        plain = optim.scale_by_muon(b1=0.0, scale="moonlight", eps=1e-2, dtype=None)
        state, buffer = tx.init(jnp.asarray(gradients[0])), 0.0
        for g in gradients:
            buffer = 0.8 * buffer + g
            ours, state = tx.update(jnp.asarray(g), state)
            ahead = jnp.asarray(g + 0.8 * buffer)
            expected, _ = plain.update(ahead, plain.init(ahead))
            np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("keller", [1.0, 2.0]),
        ("moonlight", [0.8, 0.8]),
        (lambda rows, columns: rows - columns / 4, [15.0, 0.0]),
    ],
)
def test_scale_of_tall_and_wide_matrices(scale, expected):
    """Both are stacked as 4 x 16, and each is scaled by its own rows and columns."""
    one = {"tall": jnp.eye(16, 4), "wide": jnp.eye(4, 16)}
    row = ((1.0, 0.0, 0.0),)
    updates = first_update(one, coefficients=row, scale=scale, eps=0.0)
    norms = [float(jnp.linalg.norm(updates[name])) for name in ("tall", "wide")]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)


def test_defaults_are_keller_jordans():
    g = draw(0, (4, 12))
    explicit = optim.scale_by_muon(
        b1=0.95,
        nesterov=True,
        coefficients=((3.4445, -4.7750, 2.0315),) * 5,
        eps=1e-7,
        dtype=jnp.bfloat16,
        scale=lambda rows, columns: max(1, columns / rows) ** 0.5,
    )
    default = optim.scale_by_muon()
    for tx in (explicit, default):
        state = tx.init(g)
        first, state = tx.update(g, state)
        second, _ = tx.update(g[::-1], state)
        if tx is explicit:
            expected = first, second
    np.testing.assert_array_equal((first, second), expected)
    assert first.dtype == jnp.float32


def test_bfloat16_iteration_is_near_the_float32_one():
    g = draw(0, (32, 64))
    tx = optim.scale_by_muon()
    rounded = np.asarray(tx.update(g, tx.init(g))[0]).ravel()
    exact = np.asarray(first_update(g)).ravel()
    cosine = rounded @ exact / np.linalg.norm(rounded) / np.linalg.norm(exact)
    assert 0.99 < cosine < 1 - 1e-7


@pytest.mark.parametrize("coefficients", ["standard", "polar_express", "aol"])
def test_gram_form_is_the_plain_form(coefficients):
    g = draw(0, {"wide": (6, 12), "square": (8, 8), "tall": (20, 4)})
    plain = first_update(g, coefficients=coefficients)
    gram = first_update(g, coefficients=coefficients, form="gram", levels=1)
    assert_close(gram, plain, 1e-3)


def test_momentum_in_bfloat16():
    g = draw(0, (4, 6))
    tx = optim.scale_by_muon(mu_dtype="bfloat16")
    state = tx.init(g)
    updates, state = tx.update(g, state)
    assert state.mu.dtype == jnp.bfloat16 and updates.dtype == jnp.float32


def test_a_missing_gradient_leaves_the_momentum():
    g = draw(0, {"a": (4, 6), "b": (4, 6)})
    tx = optim.muon(0.1, auxiliary=optim.lion(0.1), dtype=None)
    _, state = tx.update(g, tx.init(g), g)
    updates, later = tx.update({**g, "b": None}, state, g)
    mu = [s.inner_states["muon"].inner_state[0].mu for s in (state, later)]
    assert updates["b"] is None
    assert (mu[0]["b"] == mu[1]["b"]).all() and (mu[0]["a"] != mu[1]["a"]).any()


# Layouts, stacks, chunks.


def test_fused_matrices_are_each_their_own():
    g = draw(0, (6, 12))
    parts = jnp.split(g, 3, axis=1)
    expected = jnp.concatenate([first_update(part) for part in parts], axis=1)
    assert_close(first_update(g, matrices={".*": "m 3n"}), expected)
    assert jnp.abs(first_update(g) - expected).max() > 0.1


def test_heads_are_each_their_own_or_one():
    g = draw(0, (8, 2, 4))  # d, heads, head_dim
    heads = jnp.stack([first_update(g[:, head]) for head in range(2)], axis=1)
    assert_close(first_update(g, matrices={".*": "m b n"}), heads)
    whole = first_update(g.reshape(8, 8)).reshape(8, 2, 4)
    assert_close(first_update(g, matrices={".*": "m n n"}), whole)


def test_a_convolution_is_its_flattened_matrix():
    g = draw(0, (2, 2, 3, 20))  # kh, kw, in, out: scaled by sqrt(20 / 12)
    assert_close(first_update(g), first_update(g.reshape(12, 20)).reshape(g.shape))


def test_torchs_layout_is_the_transpose():
    g = draw(0, (9, 4))
    assert_close(first_update(g, matrices={".*": "n m"}), first_update(g.T).T)


def test_stacked_layers_equal_a_list_of_layers():
    shapes = {"query": (4, 4), "up": (4, 8), "down": (8, 4)}
    layers = [draw(seed, shapes) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    ours = first_update(stacked, matrices={".*": "b m n"})
    listed = first_update(layers, matrices={".*": "m n"})
    assert_close(ours, jax.tree.map(lambda *x: jnp.stack(x), *listed))


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_chunks_equal_the_whole(chunk):
    g = draw(0, {"layers": (6, 4, 8), "single": (5, 3)})
    rules = {"layers": "b m n", "single": "m n"}
    ours = first_update(g, matrices=rules, chunk=chunk)
    kernels = {
        "layers": [first_update(x) for x in g["layers"]],
        "single": first_update(g["single"]),
    }
    assert_close(ours, {**kernels, "layers": jnp.stack(kernels["layers"])})


# The auxiliary optimizer.

PARAMS = {"embed": (10, 4), "layers": {"w": (4, 6), "scale": (4,)}}
RULES = {"layers/w": "m n", "embed": None}


def test_the_rest_goes_to_the_auxiliary_optimizer():
    params, g = draw(0, PARAMS), draw(1, PARAMS)
    adam = optax.adamw(1e-3)
    tx = optim.muon(0.1, matrices=RULES, auxiliary=adam, weight_decay=0.1, dtype=None)
    updates, _ = tx.update(g, tx.init(params), params)
    expected, _ = adam.update(g, adam.init(params), params)
    np.testing.assert_array_equal(updates["embed"], expected["embed"])
    np.testing.assert_array_equal(updates["layers"]["scale"], expected["layers"]["scale"])
    w, dw = params["layers"]["w"], first_update(g["layers"]["w"])
    assert_close(updates["layers"]["w"], -0.1 * (dw + 0.1 * w))


def test_mask_says_which_matrices_decay():
    params = draw(0, {"a": (4, 6), "b": (4, 6), "bias": (6,)})
    zero = jax.tree.map(jnp.zeros_like, params)
    mask = {"a": True, "b": False, "bias": True}
    tx = optim.muon(0.5, auxiliary=optax.sgd(1.0), weight_decay=0.5, mask=mask)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.25 * params["a"], rtol=1e-6)
    assert not updates["b"].any() and not updates["bias"].any()


def test_what_has_nothing_to_train_needs_no_auxiliary():
    params = {"w": jnp.ones((2, 2)), "table": jnp.arange(4).reshape(2, 2), "none": None}
    params["empty"] = jnp.zeros((0, 3))
    tx = optim.muon(0.1)
    gradient = jax.grad(lambda p: p["w"].sum(), allow_int=True)(params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    moved = optim.apply_updates(params, updates)
    assert (moved["table"] == params["table"]).all() and (moved["w"] != 1).all()


def test_within_inject_hyperparams_partition_and_mask():
    params, g = draw(0, PARAMS), draw(1, PARAMS)

    def build(learning_rate, b1=0.95, eps=1e-7):
        return optim.muon(
            learning_rate, matrices=RULES, auxiliary=optax.sgd(0.1), b1=b1, eps=eps, dtype=None
        )

    alone = build(0.1)
    expected, _ = alone.update(g, alone.init(params), params)
    injected = optim.inject_hyperparams(build)(learning_rate=0.1)
    ours, state = injected.update(g, injected.init(params), params)
    assert set(state.hyperparams) == {"learning_rate", "b1", "eps"}
    assert_close(ours, expected)

    frozen = {"embed": "frozen", "layers": {"w": "muon", "scale": "muon"}}
    groups = {"muon": build(0.1), "frozen": optax.set_to_zero()}
    parted = optax.partition(groups, frozen, mask_compatible_extra_args=True)
    ours, _ = parted.update(g, parted.init(params), params)
    assert_close(ours["layers"], expected["layers"])
    assert not ours["embed"].any()

    masked = optax.masked(
        optim.scale_by_muon(RULES, dtype=None),
        {"embed": False, "layers": {"w": True, "scale": False}},
    )
    ours, _ = masked.update(g, masked.init(params), params)
    assert_close(ours["layers"]["w"], -10 * expected["layers"]["w"])
    assert (ours["embed"] == g["embed"]).all()


def test_every_argument_can_be_injected_or_stays():
    params, g = draw(0, (4, 6)), draw(1, (4, 6))
    tx = optim.inject_hyperparams(optim.muon)(learning_rate=0.1, levels=1, form="gram")
    ours, state = jax.jit(tx.update)(g, tx.init(params), params)
    assert set(state.hyperparams) == {"learning_rate", "b1", "eps", "weight_decay"}
    assert jnp.isfinite(ours).all()


# Errors.


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"b1": 1.0}, r"b1 is 1.0; accepted: 0 <= b1 < 1"),
        ({"eps": -1e-7}, r"eps is -1e-07; accepted: eps >= 0"),
        ({"levels": -1}, r"levels is -1; accepted: levels >= 0"),
        ({"chunk": 0}, r"chunk is 0; accepted: chunk >= 1"),
        ({"form": "cubic"}, r"form is 'cubic'; accepted: 'plain', 'gram'"),
        ({"scale": "rms"}, r"scale is 'rms'; accepted: 'keller', 'moonlight', or a function"),
        ({"coefficients": "keller"}, r"coefficients is 'keller'; accepted: 'standard', 'dion'"),
        ({"coefficients": ()}, r"coefficients is \(\); accepted: at least one row"),
    ],
)
@pytest.mark.parametrize("method", [optim.scale_by_muon, lambda **k: optim.muon(0.1, **k)])
def test_a_wrong_argument_is_refused_at_once(method, arguments, phrase):
    with pytest.raises(ValueError, match=f"^muon: {phrase}"):
        method(**arguments)


@pytest.mark.parametrize(
    ("matrices", "phrase"),
    [
        (None, r"the leaf 'layers/scale' of shape \(4,\) is no matrix; give muon an auxiliary"),
        (RULES, r"the leaf 'embed' of shape \(10, 4\) is no matrix"),
        ({"layers/w": "m n"}, r"matrices has no pattern for the leaf 'embed'"),
        ({**RULES, "head": "m n"}, r"matrices: the pattern 'head' matches no leaf"),
    ],
)
@pytest.mark.parametrize("method", [optim.scale_by_muon, lambda m: optim.muon(0.1, matrices=m)])
def test_leaves_that_nothing_takes_are_named(method, matrices, phrase):
    with pytest.raises(ValueError, match=f"^muon: {phrase}"):
        method(matrices).init(draw(0, PARAMS))


def test_a_mesh_axis_that_does_not_exist_is_refused_at_init():
    tx = optim.scale_by_muon(mesh_axis="fsdp")
    with pytest.raises(ValueError, match=r"muon: mesh_axis is 'fsdp', but \['fsdp'\] is not"):
        tx.init(jnp.ones((2, 3)))


# Meshes.

SHARDED = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import optim

mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
shapes = {"query": (8, 8), "up": (8, 16), "down": (16, 8)}
grads = [
    {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    for _ in range(3)
]
specs = {"query": P("fsdp", "tensor"), "up": P("fsdp", "tensor"), "down": P("tensor", "fsdp")}
shardings = [{name: NamedSharding(mesh, spec) for name, spec in specs.items()}] * 3

def step(tx):
    def run(grads):
        state = tx.init(grads)
        _, state = tx.update(grads, state)
        return tx.update(grads, state)
    return run

expected = jax.jit(step(optim.scale_by_muon(dtype=None)))(grads)
errors = {}
for axis, arguments in (
    (None, {}), ("fsdp", {}), ("fsdp", {"chunk": 2, "form": "gram", "levels": 1}),
    (("fsdp", "tensor"), {}),
):
    with jax.set_mesh(mesh):
        tx = optim.scale_by_muon(dtype=None, mesh_axis=axis, **arguments)
        out = jax.jit(step(tx), out_shardings=None)(jax.device_put(grads, shardings))
    pairs = zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True)
    errors[f"{axis} {arguments}"] = max(float(jnp.abs(a - b).max()) for a, b in pairs)
with jax.set_mesh(mesh):
    try:
        optim.scale_by_muon(mesh_axis="data").init(grads)
    except ValueError as error:
        errors["data"] = str(error)
print(json.dumps(errors))
"""


@pytest.mark.slow
def test_sharded_equals_unsharded_on_eight_devices():
    """3 and 6 matrices on 4 or 8 devices: groups are padded; float32 roundings are amplified."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=ROOT,
        env=pretended_devices.environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    refused = errors.pop("data")
    assert "mesh_axis is 'data'" in refused and "('fsdp', 'tensor')" in refused
    assert len(errors) == 4 and max(errors.values()) < 2e-4, errors
