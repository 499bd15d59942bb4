"""Greedy block descent: steps by hand, the decrease each rule guarantees, known methods."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run

N, SIZE = 12, 3
BLOCKS = np.random.default_rng(5).permutation(N).reshape(-1, SIZE)
RULES = {
    "GS": optim.gauss_southwell,
    "GSL": optim.gauss_southwell_lipschitz,
    "GSD": optim.gauss_southwell_diagonal,
    "GSQ": optim.gauss_southwell_quadratic,
}


class Quadratic:
    """x.H x / 2 with an ill-scaled H, and what the bounds of the rules are made of."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(2 * N, N)) * 10 ** rng.uniform(-1, 1, size=N)
        self.hessian = rows.T @ rows
        self.parts = np.stack([self.hessian[np.ix_(b, b)] for b in BLOCKS])
        self.lipschitz = np.linalg.eigvalsh(self.parts)[:, -1]
        self.diagonal = SIZE * np.diag(self.hessian)
        self.start = rng.normal(size=N)

    def __call__(self, x):
        return x @ self.hessian @ x / 2


def step(tx, x, gradient, **extra):
    return np.asarray(x + tx.update(jnp.asarray(gradient), tx.init(x), x, **extra)[0])


def moved(tx, gradient, **extra):
    """Which coordinates a first step moves."""
    updates, _ = tx.update(jnp.asarray(gradient), tx.init(jnp.asarray(gradient)), **extra)
    return np.flatnonzero(np.asarray(updates)).tolist()


def scores(problem, rule):
    """Of all blocks, written once more from the paper."""
    g = problem.hessian @ problem.start
    parts = g[BLOCKS]
    return {
        "GS": (parts**2).sum(axis=1),
        "GSL": (parts**2).sum(axis=1) / problem.lipschitz,
        "GSD": (parts**2 / problem.diagonal[BLOCKS]).sum(axis=1),
        "GSQ": np.array([p @ np.linalg.solve(h, p) for p, h in zip(parts, problem.parts)]),
    }[rule]


def test_two_steps_by_hand():
    """Blocks (0, 2) and (1, 3) with L of 4 and 2; then the other block's gradient is larger."""
    tx = optim.greedy_block_descent(blocks=[[0, 2], [1, 3]], lipschitz=jnp.array([4.0, 2.0]))
    gradients = [jnp.array([3.0, 3.0, -4.0, 1.0]), jnp.array([1.0, -2.0, 0.0, 6.0])]
    params, state = run(tx, jnp.ones(4), gradients)
    # |(3, -4)| = 5 > |(3, 1)|; then |(-2, 6)| > |(1, 0)|.
    assert params.tolist() == [1 - 3 / 4, 1 + 2 / 2, 1 + 4 / 4, 1 - 6 / 2]
    assert state[0].steps == 2


def test_newton_step_by_hand():
    """H_b = (2, 1; 1, 2) has the inverse (2, -1; -1, 2) / 3."""
    hessian = jnp.array([[2.0, 0.0, 1.0], [0.0, 5.0, 0.0], [1.0, 0.0, 2.0]])
    gradient, expected = jnp.array([6.0, 1.0, -3.0]), [-15 / 3, 0.0, 12 / 3]
    for blocks in ([[0, 2], [2, 1]], 2):
        tx = optim.greedy_block_descent(blocks=blocks, newton=True, hessian=hessian)
        np.testing.assert_allclose(step(tx, jnp.zeros(3), gradient), expected, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_rule_takes_the_block_of_the_largest_score(rule):
    chosen = set()
    for seed in range(8):
        problem = Quadratic(seed)
        tx = optim.greedy_block_descent(
            blocks=BLOCKS,
            select=RULES[rule],
            lipschitz=problem.lipschitz,
            diagonal=problem.diagonal,
            hessian=problem.hessian,
        )
        best = int(np.argmax(scores(problem, rule)))
        assert moved(tx, problem.hessian @ problem.start) == sorted(BLOCKS[best])
        chosen.add(best)
    assert len(chosen) > 1  # not always the same


@pytest.mark.parametrize("rule", RULES)
def test_guaranteed_decrease(rule):
    """At least half the score with the step that belongs to the rule; with GSQ exactly that."""
    newton = rule in ("GSD", "GSQ")
    with jax.enable_x64(True):
        for seed in range(8):
            problem = Quadratic(seed)
            tx = optim.greedy_block_descent(
                blocks=BLOCKS,
                select=RULES[rule],
                newton=newton,
                lipschitz=problem.lipschitz,
                diagonal=problem.diagonal,
                hessian=problem.hessian if rule == "GSQ" else None,
            )
            after = step(tx, problem.start, problem.hessian @ problem.start)
            score = scores(problem, rule)
            bound = score.max() / 2
            if rule == "GS":
                bound /= problem.lipschitz[np.argmax(score)]
            decrease = problem(problem.start) - problem(after)
            assert decrease >= bound * (1 - 1e-12)
            if rule == "GSQ":
                assert decrease == pytest.approx(bound, rel=1e-9)


def test_gsq_makes_the_largest_decrease_that_any_block_could():
    """On a quadratic GSQ is the rule of maximum improvement."""
    with jax.enable_x64(True):
        problem = Quadratic(3)
        gradient = problem.hessian @ problem.start

        def after(select, key=None):
            tx = optim.greedy_block_descent(
                blocks=BLOCKS, select=select, newton=True, hessian=problem.hessian
            )
            return problem(step(tx, problem.start, gradient, key=key))

        def only(number):
            return lambda p: (jnp.arange(len(BLOCKS)) == number).astype(p.gradient.dtype)

        every = [after(only(number)) for number in range(len(BLOCKS))]
        best = after(optim.gauss_southwell_quadratic)
        assert best == pytest.approx(min(every), rel=1e-12) and best < 0.99 * max(every)


@pytest.mark.parametrize("rule", ["GS", "GSL", "GSQ"])
def test_linear_rate_on_a_quadratic(rule):
    """The best of N / SIZE blocks makes at least the mean progress: 1 - mu SIZE / (N L) a step."""
    with jax.enable_x64(True):
        problem = Quadratic(1)
        values = np.linalg.eigvalsh(problem.hessian)
        tx = optim.greedy_block_descent(
            blocks=BLOCKS, select=RULES[rule], newton=rule == "GSQ", hessian=problem.hessian
        )
        hessian, start = jnp.asarray(problem.hessian), jnp.asarray(problem.start)

        @jax.jit
        def losses(x):
            def move(carry, _):
                x, state = carry
                updates, state = tx.update(hessian @ x, state, x)
                x = x + updates
                return (x, state), x @ hessian @ x / 2

            return jax.lax.scan(move, (x, tx.init(x)), None, 200)[1]

        after = np.asarray(losses(start))
        rate = 1 - values[0] * SIZE / (N * problem.lipschitz.max())
        assert (after <= problem(problem.start) * rate ** np.arange(1, 201)).all()
        assert (np.diff(after) <= 0).all()


def test_one_coordinate_of_gauss_southwell_is_the_largest_of_the_gradient():
    gradient = jax.random.normal(jax.random.key(1), (50,))
    assert moved(optim.greedy_block_descent(blocks=1), gradient) == [jnp.argmax(jnp.abs(gradient))]


def test_all_coordinates_are_gradient_descent():
    gradients = jax.random.normal(jax.random.key(0), (4, 7))
    ours, _ = run(optim.greedy_block_descent(0.1, blocks=7), jnp.ones(7), gradients)
    theirs, _ = run(optax.sgd(0.1), jnp.ones(7), gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [N, [list(range(N))]])
def test_all_coordinates_with_newton_end_at_the_minimum_of_a_quadratic(blocks):
    with jax.enable_x64(True):
        problem = Quadratic(2)
        tx = optim.greedy_block_descent(blocks=blocks, newton=True, hessian=problem.hessian)
        end = step(tx, problem.start, problem.hessian @ problem.start)
        np.testing.assert_allclose(end, 0, atol=1e-9)


def test_variable_blocks_are_the_largest_scores():
    gradient, scale = np.array([1.0, -4.0, 3.0, 2.0]), np.array([0.01, 16.0, 9.0, 1.0])
    rule = optim.gauss_southwell_diagonal
    assert moved(optim.greedy_block_descent(blocks=2), gradient) == [1, 2]
    tx = optim.greedy_block_descent(blocks=2, select=rule, diagonal=scale)  # 100, 1, 1, 4
    assert moved(tx, gradient) == [0, 3]


def test_variable_block_is_divided_by_its_own_largest_eigenvalue():
    problem = Quadratic(4)
    gradient = problem.hessian @ problem.start
    updates = step(optim.greedy_block_descent(blocks=2, hessian=problem.hessian), 0.0, gradient)
    block = np.argsort(np.abs(gradient))[-2:]
    bound = np.linalg.eigvalsh(problem.hessian[np.ix_(block, block)])[-1]
    np.testing.assert_allclose(updates[block], -gradient[block] / bound, rtol=1e-5)


def test_thresholding_finds_the_best_pair_that_gauss_southwell_misses():
    """Two correlated coordinates with large gradients gain less together than apart."""
    hessian = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    gradient = np.array([1.0, 1.0, 0.9])

    def gain(pair):
        part = gradient[list(pair)]
        return part @ np.linalg.solve(hessian[np.ix_(pair, pair)], part)

    best = max(itertools.combinations(range(3), 2), key=gain)
    rule = optim.gauss_southwell_quadratic
    tx = optim.greedy_block_descent(blocks=2, select=rule, newton=True, hessian=hessian)
    assert moved(optim.greedy_block_descent(blocks=2), gradient) == [0, 1] != list(best)
    assert gain(moved(tx, gradient)) == pytest.approx(gain(best), rel=1e-6)


def coupled(seed, n=60, common=0.5):
    """A Hessian whose coordinates share a direction and have units of their own, and a gradient."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, n)) + common
    unscaled = features.T @ features
    return unscaled, features.T @ rng.normal(size=40), np.exp(2 * rng.normal(size=n))


@pytest.mark.slow
def test_thresholding_does_not_depend_on_units():
    with jax.enable_x64(True):
        for seed in range(5):
            hessian, gradient, units = coupled(seed)
            blocks = []
            for u in (np.ones_like(units), units):
                tx = optim.greedy_block_descent(
                    blocks=4,
                    select=optim.gauss_southwell_quadratic,
                    newton=True,
                    hessian=u[:, None] * hessian * u,
                )
                blocks.append(moved(tx, u * gradient))
            assert blocks[0] == blocks[1]


@pytest.mark.slow
def test_thresholding_gains_more_than_the_diagonal_rule_where_coordinates_are_coupled():
    with jax.enable_x64(True):
        gains = []
        for seed in range(20):
            hessian, gradient, units = coupled(seed)
            hessian, gradient = units[:, None] * hessian * units, units * gradient

            def gain(select, hessian=hessian, gradient=gradient):
                tx = optim.greedy_block_descent(
                    blocks=4,
                    select=select,
                    newton=True,
                    hessian=hessian,
                    diagonal=np.diag(hessian),
                )
                return -gradient @ np.asarray(step(tx, 0.0, gradient)) / 2

            rules = optim.gauss_southwell_quadratic, optim.gauss_southwell_diagonal
            gains.append([gain(rule) for rule in rules])
        quadratic, diagonal = np.array(gains).mean(axis=0)
        assert quadratic > 1.1 * diagonal


def test_cyclic_blocks_visit_every_block_in_turn():
    fixed = optim.scale_by_greedy_block_descent([[0, 3], [2, 1]], select=optim.cyclic_blocks)
    variable = optim.scale_by_greedy_block_descent(2, select=optim.cyclic_blocks)
    for tx, n, expected in (
        (fixed, 4, [[0, 3], [1, 2], [0, 3]]),
        (variable, 5, [[0, 1], [2, 3], [0, 4], [0, 1]]),  # the last one goes on at the first
    ):
        state, seen = tx.init(jnp.ones(n)), []
        for _ in expected:
            updates, state = tx.update(jnp.ones(n), state)
            seen.append(np.flatnonzero(updates).tolist())
        assert seen == expected


@pytest.mark.parametrize("blocks", [2, [[0, 1], [2, 3], [4, 5]]])
def test_random_blocks_are_uniform(blocks):
    """Every coordinate of six moves in a third of 3000 steps, within four standard deviations."""
    tx = optim.scale_by_greedy_block_descent(blocks, select=optim.random_blocks)

    @jax.vmap
    def draw(key):
        return tx.update(jnp.ones(6), tx.init(jnp.ones(6)), key=key)[0]

    drawn = draw(jax.random.split(jax.random.key(0), 3000))
    assert (drawn.sum(axis=1) == 2).all()
    spread = 4 * np.sqrt(1 / 3 * 2 / 3 / 3000)
    np.testing.assert_allclose(drawn.mean(axis=0), 1 / 3, atol=spread)
    assert len(np.unique(drawn, axis=0)) == (15 if blocks == 2 else 3)


@pytest.mark.slow
def test_arguments_of_the_update_replace_those_of_the_constructor():
    """A Newton step on a loss that is not quadratic, with the Hessian where it is."""

    def loss(x):
        return jnp.sum(x**4) + jnp.sum(x) ** 2

    with jax.enable_x64(True):
        x = jnp.array([1.0, -2.0, 0.5, 3.0])
        tx = optim.greedy_block_descent(blocks=[[0, 1], [2, 3]], newton=True, hessian=jnp.eye(4))

        @jax.jit
        def newton(x):
            hessian = jax.hessian(loss)(x)
            return tx.update(jax.grad(loss)(x), tx.init(x), x, hessian=hessian)[0]

        gradient, hessian = jax.grad(loss)(x)[2:], jax.hessian(loss)(x)[2:, 2:]
        expected = [0, 0, *-np.linalg.solve(hessian, gradient)]
        np.testing.assert_allclose(newton(x), expected, rtol=1e-10)
        curvature = optim.greedy_block_descent(blocks=1, newton=True, diagonal=jnp.ones(4))
        ours = step(curvature, x, jnp.arange(4.0), curvature=jnp.full(4, 2.0))
        np.testing.assert_allclose(ours - x, [0, 0, 0, -1.5])


def test_blocks_cross_leaves_in_their_order():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(()), "c": jnp.zeros(3)}
    gradients = {"a": jnp.array([[0.0, 5.0], [1.0, 0.0]]), "b": jnp.ones(()), "c": jnp.ones(3)}
    ours, _ = run(optim.greedy_block_descent(blocks=[[0, 2], [1, 5]]), params, [gradients])
    assert ours["a"].tolist() == [[0.0, -5.0], [0.0, 0.0]]
    assert ours["b"] == 0 and ours["c"].tolist() == [-1.0, 0.0, 0.0]


def test_odd_leaves():
    """None and masked gradients and integers are no coordinates; empty leaves have none."""
    params = {
        "a": None,
        "b": jnp.ones(2),
        "c": optax.MaskedNode(),
        "d": jnp.zeros((0, 3)),
        "e": jnp.array([0, 100]),
        "f": jnp.float32(1.0),
        "g": jnp.ones(2, jnp.bfloat16),
    }
    gradients = {**params, "b": None, "e": np.zeros(2, jax.dtypes.float0), "f": jnp.float32(3.0)}
    tx = optim.greedy_block_descent(0.5, blocks=[[0, 1], [1, 2]])  # of f and g
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert updates["b"] is None and updates["g"].dtype == jnp.float32
    moved = optim.apply_updates(params, updates)
    assert moved["f"] == -0.5 and moved["g"].tolist() == [0.5, 1.0]
    assert moved["e"].tolist() == [0, 100] and moved["d"].shape == (0, 3)


def test_coordinates_without_curvature_stay():
    """A column of zeros has no gradient, no constant, and no inverse."""
    hessian = jnp.diag(jnp.array([2.0, 0.0, 1.0]))
    gradient, blocks = jnp.array([4.0, 0.0, 1.0]), [[0, 1], [1, 2]]
    for name in RULES:
        tx = optim.greedy_block_descent(
            blocks=blocks,
            select=RULES[name],
            newton=True,
            hessian=hessian,
            diagonal=jnp.diag(hessian),
        )
        assert step(tx, jnp.zeros(3), gradient).tolist() == [-2.0, 0.0, 0.0]
    assert step(optim.greedy_block_descent(blocks=3), jnp.ones(3), jnp.zeros(3)).tolist() == [1] * 3


SQUARE = jnp.eye(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 0}, "blocks is 0; accepted: an integer >= 1"),
        ({"blocks": 1.5}, "blocks is 1.5; accepted: an integer >= 1"),
        ({"blocks": [0, 1]}, "blocks is an array of shape \\(2,\\)"),
        ({"blocks": [[0.0]]}, "and float64; accepted"),
        ({"blocks": 5}, "blocks is 5; accepted: at most the 4 coordinates"),
        ({"blocks": [[0, 4]]}, "blocks holds coordinate 4; accepted: 0 to 3"),
        ({"blocks": [[-1, 0]]}, "blocks holds coordinate -1; accepted: 0 to 3"),
        ({"blocks": 2, "hessian": jnp.ones(4)}, "accepted for variable blocks: \\(n, n\\)"),
        ({"blocks": 2, "hessian": jnp.eye(3)}, "hessian has 3 rows; accepted: the 4"),
        ({"blocks": [[0, 1]], "hessian": jnp.ones((1, 2, 3))}, "\\(n, n\\) or \\(1, 2, 2\\)"),
        (
            {"blocks": 2, "lipschitz": jnp.ones(2)},
            "lipschitz has the shape \\(2,\\); accepted: \\(\\)",
        ),
        ({"blocks": [[0], [1]], "lipschitz": jnp.ones(3)}, "accepted: \\(\\) or \\(2,\\)"),
        (
            {"blocks": 2, "select": optim.gauss_southwell_lipschitz, "hessian": SQUARE},
            "accepted: a partition, or gauss_southwell_diagonal",
        ),
        (
            {"blocks": [[0]], "select": optim.gauss_southwell_lipschitz},
            "gauss_southwell_lipschitz needs lipschitz or hessian",
        ),
        ({"blocks": 2, "select": optim.gauss_southwell_diagonal}, "needs diagonal"),
        ({"blocks": 2, "select": optim.gauss_southwell_quadratic}, "needs hessian"),
        ({"blocks": [[0]], "select": optim.gauss_southwell_quadratic}, "needs hessian"),
        ({"blocks": 2, "newton": True}, "newton needs hessian or diagonal"),
        ({"blocks": 2, "select": optim.random_blocks}, "key is missing; pass"),
    ],
)
def test_errors_say_what_is_accepted(arguments, message):
    with pytest.raises(ValueError, match=f"^greedy_block_descent: .*{message}.*\\.$"):
        moved(optim.greedy_block_descent(**arguments), np.ones(4, np.float32))


def test_the_default_is_the_papers_step():
    gradients = jax.random.normal(jax.random.key(0), (3, 6))
    ours, _ = run(optim.greedy_block_descent(blocks=2), jnp.ones(6), gradients)
    rule = optim.gauss_southwell
    plain, _ = run(optim.greedy_block_descent(1.0, blocks=2, select=rule), jnp.ones(6), gradients)
    np.testing.assert_array_equal(ours, plain)
