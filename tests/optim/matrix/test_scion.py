"""Scion: steps by hand, every norm in its authors' layout, the ball, layouts, what is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.solvers.newton_schulz import newton_schulz


def direction(norm, gradient, **kwargs):
    tx = optim.scale_by_scion(norms={".*": norm}, dtype=None, **kwargs)
    return tx.update(gradient, tx.init(gradient))[0]


def run(tx, params, gradients):
    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for g in gradients:
        params, state = step(params, state, g)
    return params


def test_first_two_steps_by_hand():
    norms = {"w": optim.SignNorm(6.0), "b": optim.BiasRMSNorm(2.0)}
    tx = optim.scion(0.5, b1=0.5, norms=norms)
    params = {"w": jnp.array([[8.0, 4], [0, 0], [0, 0]]), "b": jnp.array([1.0, 1])}
    gradient = {"w": jnp.array([[2.0, -2], [0, 1], [1, 1]]), "b": jnp.array([7.0, -1])}
    # m = g / 2; three inputs, so entries of 6 / 3; |b| = 5. p = p / 2 - s lmo / 2.
    updates, state = tx.update(gradient, tx.init(params), params)
    params = optim.apply_updates(params, updates)
    assert params["w"].tolist() == [[3, 3], [0, -1], [-1, -1]]
    np.testing.assert_allclose(params["b"], [0.5 - 1.4, 0.5 + 0.2], rtol=1e-6)
    # m = 1/4 of the first and 1/2 of the second gradient: signs of -1, 2, and so on.
    gradient = {"w": jnp.array([[-3.0, 5], [0, -1], [0, 0]]), "b": jnp.zeros(2)}
    updates, state = tx.update(gradient, state, params)
    assert state[0].mu["w"].tolist() == [[-1, 2], [0, -0.25], [0.25, 0.25]]
    params = optim.apply_updates(params, updates)
    assert params["w"].tolist() == [[2.5, 0.5], [0, 0.5], [-1.5, -1.5]]


def column(g, normalized=False, transpose=False):
    """As the authors write it, for g of shape (outputs, inputs)."""
    g = g.T if transpose else g
    size = np.sqrt((g**2).sum(0, keepdims=True)) / np.sqrt(g.shape[0])
    g = g / ((size * g.shape[1] if normalized else size) + 1e-8)
    return g.T if transpose else g


def row(g, normalized=True, transpose=False):
    g = g.T if transpose else g
    size = np.sqrt((g**2).sum(-1, keepdims=True))
    g = g / ((size * np.sqrt(g.shape[1]) if normalized else size) + 1e-8)
    return g.T if transpose else g


def spectral(g, normalized=True, max=False, steps=5):
    outputs, inputs = g.shape
    x = g / (np.linalg.norm(g) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    factor = (outputs / inputs) ** 0.5 if normalized else outputs**0.5
    return x * (1.0 if max and factor < 1 else factor)


@pytest.mark.parametrize("flags", [{}, {"normalized": False}, {"normalized": True}])
@pytest.mark.parametrize("turn", [{}, {"transpose": True}])
def test_columns_and_rows_in_the_authors_layout(flags, turn):
    g = np.random.default_rng(0).normal(size=(3, 5))
    with jax.enable_x64(True):
        for ours, theirs in ((optim.ColumnNorm, column), (optim.RowNorm, row)):
            got = direction(ours(3.0, **flags, **turn), jnp.asarray(g.T)).T
            np.testing.assert_allclose(got, 3 * theirs(g, **flags, **turn), rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("flags", [{}, {"normalized": False}, {"max": True}, {"steps": 2}])
def test_spectral_norm_in_the_authors_layout(shape, flags):
    g = np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64(True):
        got = direction(optim.SpectralNorm(2.0, **flags), jnp.asarray(g.T)).T
    np.testing.assert_allclose(got, 2 * spectral(g, **flags), rtol=1e-11)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 3, 2), (4, 6, 5), (4, 6)])
def test_convolutions_in_the_authors_layout(shape):
    g = np.random.default_rng(0).normal(size=shape)
    outputs, inputs, *window = shape
    flat = g.reshape(outputs, -1)
    expected = spectral(flat) / (outputs / flat.shape[1]) ** 0.5
    if window:
        expected *= (outputs / inputs) ** 0.5 / window[0] ** len(window)
    order = (*range(2, g.ndim), 1, 0)
    with jax.enable_x64(True):
        got = direction(optim.SpectralConvNorm(2.0), jnp.asarray(g.transpose(order)))
    np.testing.assert_allclose(got, 2 * expected.reshape(shape).transpose(order), rtol=1e-11)


@pytest.mark.slow
def test_auto_norm_goes_by_axes_and_declared_layouts():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"matrix": (4, 6), "conv": (3, 4, 6), "bias": (6,), "scalar": ()}
    tree = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    auto = direction(optim.AutoNorm(2.0), tree)
    rms = optim.BiasRMSNorm(2.0)
    norms = {"matrix": optim.SpectralNorm(2.0), "conv": optim.SpectralConvNorm(2.0)}
    for name, leaf in tree.items():
        np.testing.assert_array_equal(auto[name], direction(norms.get(name, rms), leaf), name)
    heads = direction(optim.AutoNorm(2.0), tree["conv"], matrices={"": "m n n"})
    flat = direction(norms["matrix"], tree["conv"].reshape(3, 24))
    np.testing.assert_allclose(heads, flat.reshape(3, 4, 6), rtol=1e-5, atol=1e-7)


NORMS = [
    optim.SpectralNorm(2.0),
    optim.ColumnNorm(2.0, normalized=True),
    optim.RowNorm(2.0),
    optim.SignNorm(2.0),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_stacked_layers_are_a_list_of_layers(norm):
    layers = jax.random.normal(jax.random.key(0), (3, 4, 6))
    stacked = direction(norm, {"w": layers}, matrices={"w": "b m n"})["w"]
    listed = direction(norm, list(layers))
    np.testing.assert_allclose(stacked, jnp.stack(listed), rtol=1e-5, atol=1e-7)
    turned = direction(norm, {"w": layers[0].T}, matrices={"w": "n m"})["w"]
    np.testing.assert_allclose(turned.T, listed[0], rtol=1e-5, atol=1e-7)


def test_tall_and_wide_matrices_in_one_group_keep_their_factors():
    wide = jax.random.normal(jax.random.key(0), (4, 9))
    updates = direction(optim.SpectralNorm(), {"wide": wide, "tall": wide.T, "other": wide * 2})
    np.testing.assert_allclose(updates["wide"], newton_schulz(wide) * 1.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates["tall"], updates["wide"].T / 2.25, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates["other"], updates["wide"], rtol=1e-4, atol=1e-5)


def test_with_signs_alone_it_is_sign_descent():
    gradients = jax.random.normal(jax.random.key(0), (5, 3, 4))
    tx = optim.scion(0.1, norms={".*": optim.SignNorm(normalized=False)}, unconstrained=True)
    ours = run(tx, jnp.ones((3, 4)), gradients)
    theirs = run(optax.sign_sgd(0.1), jnp.ones((3, 4)), gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_scion_light_is_scion_on_a_decaying_sum():
    """The sum is 1 / (1 - b1) times the momentum, and lmo is blind to that but for its epsilons."""
    gradients = np.random.default_rng(0).normal(size=(6, 3, 4))
    with jax.enable_x64(True):
        params = jnp.ones((3, 4))
        plain = run(optim.scion(0.1, b1=0.9, dtype=None), params, gradients)
        total, light = jnp.zeros((3, 4)), optim.scion(0.1, dtype=None)
        for g in gradients:
            total = 0.9 * total + g
            updates, state = light.update(total, light.init(params), params)
            params = optim.apply_updates(params, updates)
        assert jax.tree.leaves(state) == []
        np.testing.assert_allclose(params, plain, rtol=1e-5)


def sizes(name, w):
    """What must be 1 where a leaf is on its unit sphere."""
    inputs, outputs = w.shape[-2:]
    if name == "spectral":
        return np.linalg.svd(w)[1] / np.sqrt(outputs / inputs)
    if name == "largest":
        return np.linalg.svd(w)[1]
    if name == "conv":
        return np.linalg.svd(w)[1] / (np.sqrt(outputs / inputs) / 9)
    if name == "column":
        return np.sqrt((w**2).mean(-1))
    if name == "row":
        return np.sqrt((w**2).sum(-2) * inputs)
    return np.abs(w) * inputs  # sign


SPHERES = {
    "spectral": optim.SpectralNorm(3.0),
    "largest": optim.SpectralNorm(3.0, max=True),
    "conv": optim.SpectralConvNorm(3.0),
    "column": optim.ColumnNorm(3.0),
    "row": optim.RowNorm(3.0),
    "sign": optim.SignNorm(3.0),
}


def start():
    shapes = {name: (3, 3, 6, 4) if name == "conv" else (6, 4) for name in SPHERES}
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def test_init_puts_every_leaf_on_its_sphere():
    params = optim.scion_init(jax.random.key(0), start(), norms=SPHERES)
    for name, leaf in params.items():
        np.testing.assert_allclose(sizes(name, np.asarray(leaf) / 3), 1.0, rtol=1e-5, err_msg=name)
    again = optim.scion_init(jax.random.key(0), start(), norms=SPHERES)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


def test_the_constraint_keeps_the_ball():
    """A convex combination of the start and the directions; Newton-Schulz overshoots by a fifth.

    Not of kernels: the start is a matrix at each position of the window, the directions are not.
    """
    norms = {name: norm for name, norm in SPHERES.items() if name != "conv"}
    shapes = {name: leaf for name, leaf in start().items() if name != "conv"}
    params = optim.scion_init(jax.random.key(0), shapes, norms=norms)
    rng = np.random.default_rng(0)
    gradients = [{name: jnp.asarray(rng.normal(size=(6, 4))) for name in norms} for _ in range(30)]
    params = run(optim.scion(0.2, b1=0.9, norms=norms, dtype=None), params, gradients)
    for name, leaf in params.items():
        most = 1.21 if name in ("spectral", "largest") else 1.0
        assert sizes(name, np.asarray(leaf) / 3).max() <= most + 1e-5, name


def test_init_leaves_integers_empties_and_dtypes_alone():
    params = {
        "w": jnp.zeros((4, 4), jnp.bfloat16),
        "v": jnp.zeros((4, 4), jnp.bfloat16),
        "b": jnp.ones(3),
        "steps": jnp.array([[1, 2]]),
        "empty": jnp.zeros((0, 3)),
        "none": None,
    }
    made = optim.scion_init(jax.random.key(0), params)
    assert made["w"].dtype == jnp.bfloat16 and made["b"].tolist() == [0.0] * 3
    assert (made["w"] != made["v"]).any()
    assert made["steps"] is params["steps"] and made["empty"] is params["empty"]
    assert made["none"] is None
    zeros = optim.scion_init(
        jax.random.key(0),
        {"head": jnp.ones((2, 2))},
        norms={"head": optim.SignNorm(zero_init=True)},
    )
    assert zeros["head"].tolist() == [[0.0, 0.0]] * 2


def test_init_draws_are_fair():
    """1600 signs, and the 1600 entries of 25 orthogonal matrices, each of variance 1 / 8."""
    params = {"sign": jnp.zeros((40, 40)), "spectral": jnp.zeros((25, 8, 8))}
    made = optim.scion_init(
        jax.random.key(3),
        params,
        norms={"sign": optim.SignNorm(normalized=False), "spectral": optim.SpectralNorm()},
        matrices={"sign": "m n", "spectral": "b m n"},
    )
    assert abs(made["sign"].sum()) < 4 * 40
    assert abs(made["spectral"].sum()) < 4 * 40 / 8**0.5
    assert abs(jnp.trace(made["spectral"], axis1=1, axis2=2).sum()) < 4 * 5


@pytest.mark.parametrize(
    ("norms", "matrices", "message"),
    [
        ({"w": optim.AutoNorm()}, None, r"norms has no pattern for the leaf 'b' of shape \(3,\)"),
        ({".*": 50.0}, None, r"norms gives '\.\*' the value 50.0; accepted: a norm, such as"),
        ({".*": None}, None, r"norms gives '\.\*' the value None; accepted: a norm"),
        ({".*": optim.SpectralNorm()}, None, r"norms gives 'b' SpectralNorm, which is for matr"),
        ({".*": optim.SignNorm()}, {"w": None, "c": None}, r"norms gives 'b' SignNorm, which"),
        ({".*": optim.AutoNorm()}, None, r"norms gives 'c' AutoNorm, which knows nothing of 5 a"),
        (
            {"b": optim.BiasRMSNorm(), ".": optim.SpectralConvNorm()},
            None,
            r"norms: .* match one leaf, 'b', with different labels",
        ),
        (
            {"b": optim.BiasRMSNorm(), "w|c": optim.SpectralConvNorm()},
            None,
            r"norms gives 'c' of shape \(1, 1, 1, 2, 2\) SpectralConvNorm; accepted",
        ),
        (
            {"b|c": optim.BiasRMSNorm(), "w": optim.SpectralConvNorm()},
            {"w": "m n", "c": None},
            r"norms gives 'w' of shape \(2, 3\) SpectralConvNorm; accepted: a leaf of 2 to 4 axes",
        ),
        (
            {"b": optim.BiasRMSNorm(), "x": optim.SignNorm()},
            None,
            "norms: the pattern 'x' matches no",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(norms, matrices, message):
    params = {"b": jnp.ones(3), "c": jnp.ones((1, 1, 1, 2, 2)), "w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=f"scion: {message}"):
        optim.scion(0.1, norms=norms, matrices=matrices).init(params)
    with pytest.raises(ValueError, match=f"scion: {message}"):
        optim.scion_init(jax.random.key(0), params, norms=norms, matrices=matrices)


@pytest.mark.parametrize("b1", [1.0, -0.1, float("nan")])
def test_b1_out_of_range_is_named(b1):
    with pytest.raises(ValueError, match=rf"scion: b1 is {b1}; accepted: 0 <= b1 < 1"):
        optim.scion(0.1, b1=b1)


def test_defaults_are_the_authors():
    """Their momentum 1, norm Auto of scale 1, constrained, Newton-Schulz in bfloat16."""
    defaults = {k: p.default for k, p in inspect.signature(optim.scion).parameters.items()}
    assert (defaults["b1"], defaults["unconstrained"]) == (0.0, False)
    assert defaults["norms"] == {".*": optim.AutoNorm()} and defaults["dtype"] == "bfloat16"
    assert optim.SpectralNorm() == optim.SpectralNorm(1.0, max=False, normalized=True, steps=5)
    assert optim.SpectralConvNorm() == optim.SpectralConvNorm(1.0, steps=5)
    assert optim.ColumnNorm() == optim.ColumnNorm(1.0, normalized=False, transpose=False)
    assert optim.RowNorm() == optim.RowNorm(1.0, normalized=True, transpose=False)
    assert optim.SignNorm() == optim.SignNorm(1.0, normalized=True, zero_init=False)


def test_bfloat16_newton_schulz_is_near():
    gradient = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    exact = direction(optim.SpectralNorm(), gradient)["w"]
    tx = optim.scale_by_scion(norms={".*": optim.SpectralNorm()})
    rounded = tx.update(gradient, tx.init(gradient))[0]["w"]
    assert rounded.dtype == jnp.float32
    cosine = jnp.sum(exact * rounded) / jnp.linalg.norm(exact) / jnp.linalg.norm(rounded)
    assert 0.99 < cosine < 1 and (rounded == rounded.astype(jnp.bfloat16)).all()


def test_zero_gradients_only_shrink():
    params = {"w": jnp.ones((3, 2)), "c": jnp.ones((3, 3, 2, 2)), "b": jnp.ones(2)}
    moved = run(optim.scion(0.25, b1=0.5), params, [jax.tree.map(jnp.zeros_like, params)])
    assert all((leaf == 0.75).all() for leaf in jax.tree.leaves(moved))


def test_traced_momentum_is_kept_and_gives_the_same_step():
    gradient = {"w": jax.random.normal(jax.random.key(0), (4, 4))}
    tx = optim.inject_hyperparams(optim.scale_by_scion, static_args=("norms", "dtype"))
    injected = tx(b1=0.0, norms={".*": optim.AutoNorm()}, dtype=None)
    updates, _ = injected.update(gradient, injected.init(gradient), gradient)
    np.testing.assert_allclose(
        updates["w"], direction(optim.AutoNorm(), gradient)["w"], rtol=1e-5, atol=1e-6
    )


def test_on_a_mesh():
    gradient = {"w": jax.random.normal(jax.random.key(0), (4, 4)), "b": jnp.ones(4)}
    alone = direction(optim.AutoNorm(), gradient)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        spread = jax.jit(lambda g: direction(optim.AutoNorm(), g, mesh_axis="x"))(gradient)
    np.testing.assert_allclose(spread["w"], alone["w"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="scion: mesh_axis is 'y'"):
        direction(optim.AutoNorm(), gradient, mesh_axis="y")
