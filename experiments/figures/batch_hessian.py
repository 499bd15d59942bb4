r"""Extremal eigenvalues of a batch's Hessian against the batch size, and the largest stable rates.

.. math::
    \lambda_1(H_B) \approx v_1^\top H_B v_1 + c\,(1/B - 1/N), \qquad
    c = \sum_{j > 1} \frac{\operatorname{mean}_i (v_j^\top H_i v_1)^2}{\lambda_1 - \lambda_j}

is perturbation theory to second order: H is the Hessian of all N samples, with eigenpairs
(\lambda_j, v_j), H_i that of one sample, and a batch is drawn without replacement, so that
v_1' H_B v_1 is \lambda_1 in the mean. In the spiked random-matrix model all other eigenvalues are
near zero beside \lambda_1 and H_B - H is noise of variance \sigma^2 / B in each of P^2 entries;
then c is P \sigma^2 / \lambda_1, and for batches so small that the noise's edge, at
2 \sigma \sqrt{P / B}, hides the spike the eigenvalue follows the edge, as the smallest, which has
no spike, always does. Both coefficients are compared: with zeros for the other eigenvalues, and
with the nine next ones, an outlier for each class, as they are; the second was added when the first
was seen to be low.

The abstract alone of the paper was read: networks, constants and rules here are our own. A
perceptron with one hidden layer of 32 (P = 2,410) on scikit-learn's digits (N = 1,438), after 300
steps of SGD at rate 0.1 on batches of 64. Eigenvalues are Lanczos's after 30 steps; what is shown
is their distance from v' H_B v, v the eigenvector of H. That it is not negative is Rayleigh's
principle and no finding.

A rate is stable where 100 steps from these parameters do not raise the loss of all samples; of
rates a factor sqrt 2 apart, the largest for which it and all smaller ones are stable.

*Reference*: Granziol, Zohren, Roberts, 2022, arXiv 2006.09092.
"""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optim
from experiments.figures.target import Paper, Part, Table, Target
from experiments.models.mlp import Mlp
from experiments.tasks.classification import Classification

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
STABLE_SIZES = SIZES[:5]
COEFFICIENTS = ("coefficient, others zero", "coefficient, outliers")
OUTLIERS = 10  # eigenvalues of the full Hessian, the first included: one for each class
LANCZOS_STEPS, TRAINING_STEPS, STABLE_STEPS = 30, 300, 100
OPTIMIZERS: dict[str, tuple[Callable[[Any], optax.GradientTransformation], np.ndarray]] = {
    "SGD": (optax.sgd, 0.0005 * 2 ** (np.arange(24) / 2)),
    "Adam": (optax.adam, 0.00005 * 2 ** (np.arange(24) / 2)),
}
LINEAR, ROOT = (0.75, 1.25), (0.25, 0.75)  # exponents that count as 1 and as 1/2

Loss = Callable[[Any, Any], jax.Array]


class Batch(NamedTuple):
    """Samples of which the first `size` count: batches of all sizes are one program."""

    samples: Any
    size: Any


def draw(key: jax.Array, most: int, data: Any) -> Any:
    """`most` samples without replacement."""
    chosen = jax.random.permutation(key, len(data["label"]))[:most]
    return jax.tree.map(lambda x: x[chosen], data)


def mean_loss(logits: Callable[[Any, Any], jax.Array], params: Any, batch: Batch) -> jax.Array:
    labels = batch.samples["label"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch.samples), labels)
    return jnp.sum(jnp.where(jnp.arange(len(labels)) < batch.size, losses, 0)) / batch.size


def descend(loss: Loss, tx: optax.GradientTransformation, params: Any, batches: Batch) -> Any:
    """The parameters after a step on each batch."""

    def step(carry: Any, batch: Batch) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]


def ends(loss: Loss, params: Any, start: Any, batch: Batch) -> tuple[jax.Array, Any]:
    """The largest and the smallest eigenvalue of the batch's Hessian, and their vectors."""
    matvec = optim.hessian_operator(lambda p: loss(p, batch), params)

    def end(sign: int) -> tuple[jax.Array, Any]:
        def signed(v: Any) -> Any:
            return jax.tree.map(lambda leaf: sign * leaf, matvec(v))

        found = optim.top_eigenpairs(signed, start, 1, steps=LANCZOS_STEPS)
        return sign * found.values, found.vectors

    return jax.tree.map(lambda *both: jnp.concatenate(both), end(1), end(-1))


def distances(loss: Loss, params: Any, start: Any, vectors: Any, batch: Batch) -> jax.Array:
    """Of the ends of the batch's spectrum from its Hessian along the full one's end vectors."""
    matvec = optim.hessian_operator(lambda p: loss(p, batch), params)
    along = jax.vmap(lambda v: optax.tree.vdot(v, matvec(v)))(vectors)
    return jnp.abs(ends(loss, params, start, batch)[0] - along)


def coefficients(
    loss: Loss, params: Any, data: Any, values: jax.Array, vectors: Any
) -> tuple[jax.Array, jax.Array]:
    """c from the full Hessian's top pairs, with zeros for all but the first, and as they are."""
    first = jax.tree.map(lambda v: v[0], vectors)

    def squares(sample: Any) -> tuple[jax.Array, jax.Array]:
        one = Batch(jax.tree.map(lambda x: x[None], sample), 1)
        w = jax.jvp(jax.grad(lambda p: loss(p, one)), (params,), (first,))[1]
        along = jax.vmap(optax.tree.vdot, (0, None))(vectors, w)
        return optax.tree.vdot(w, w), along**2

    whole, along = jax.tree.map(lambda x: jnp.mean(x, 0), jax.lax.map(squares, data))
    across = whole - along[0]
    near = jnp.sum(along[1:] * (1 / (values[0] - values[1:]) - 1 / values[0]))
    return across / values[0], across / values[0] + near


def spectra(
    loss: Loss, data: Any, count: int, params: Any, key: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """For one network both coefficients, and distances as (ends, sizes, draws)."""
    start_key, draw_key = jax.random.split(key)
    start = optax.tree.random_like(start_key, params, jax.random.normal)
    full = Batch(data, len(data["label"]))
    _, vectors = ends(loss, params, start, full)
    matvec = optim.hessian_operator(lambda p: loss(p, full), params)
    found = optim.top_eigenpairs(matvec, start, OUTLIERS, steps=2 * LANCZOS_STEPS)
    predicted = coefficients(loss, params, data, found.values, found.vectors)

    keys = jax.random.split(draw_key, count)
    samples = jax.vmap(lambda k: draw(k, max(SIZES), data))(keys)

    def of_size(size: jax.Array) -> jax.Array:
        def of_draw(samples: Any) -> jax.Array:
            return distances(loss, params, start, vectors, Batch(samples, size))

        return jax.vmap(of_draw)(samples)

    return predicted, jnp.moveaxis(jax.lax.map(of_size, jnp.array(SIZES)), -1, 0)


def stable(
    loss: Loss,
    data: Any,
    make: Callable[[Any], optax.GradientTransformation],
    rates: np.ndarray,
    params: Any,
    key: jax.Array,
) -> jax.Array:
    """(sizes, rates): whether each is stable, for one network and one order of samples."""
    full = Batch(data, len(data["label"]))
    keys = jax.random.split(key, STABLE_STEPS)
    samples = jax.vmap(lambda k: draw(k, max(STABLE_SIZES), data))(keys)

    def end(size: jax.Array, rate: jax.Array) -> jax.Array:
        batches = Batch(samples, jnp.full(STABLE_STEPS, size))
        return loss(descend(loss, make(rate), params, batches), full)

    over_rates = jax.vmap(end, (None, 0))
    ended = jax.vmap(over_rates, (0, None))(
        jnp.array(STABLE_SIZES), jnp.asarray(rates, jnp.float32)
    )
    return ended <= loss(params, full)


def measure(quick: bool) -> Table:
    """Three networks (one if quick); of every size 32 batches (4), and the stable rates."""
    networks, count = (1, 4) if quick else (3, 32)
    task = Classification(model=Mlp(hidden=(32,))).build()
    total = task.facts["samples"]
    data = jax.tree.map(jnp.asarray, task.batches(0, 0, total))
    assert task.logits is not None
    loss = functools.partial(mean_loss, task.logits)
    table: dict[str, list[Any]] = {"quantity": [], "network": [], "size": [], "value": []}

    def keys(name: str) -> jax.Array:
        """One for each network."""
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(f"batch_hessian {name}".encode()))
        return jax.random.split(key, networks)

    def add(quantity: str, sizes: Sequence[int], values: Any) -> None:
        """Values as (networks, sizes, draws)."""
        values = np.asarray(values).reshape(networks, len(sizes), -1)
        for (network, place, _), value in np.ndenumerate(values):
            for column, entry in zip(table.values(), (quantity, network, sizes[place], value)):
                column.append(entry)

    def trained(init: jax.Array, order: jax.Array) -> Any:
        samples = jax.vmap(lambda k: draw(k, 64, data))(jax.random.split(order, TRAINING_STEPS))
        batches = Batch(samples, jnp.full(TRAINING_STEPS, 64))
        return descend(loss, optax.sgd(0.1), task.init(init), batches)

    params = jax.jit(jax.vmap(trained))(keys("init"), keys("order"))
    of_network = functools.partial(spectra, loss, data, count)
    predicted, away = jax.jit(jax.vmap(of_network))(params, keys("spectra"))
    for quantity, values in zip(COEFFICIENTS, predicted, strict=True):
        add(quantity, [total], values)
    add("largest", SIZES, away[:, 0])
    add("smallest", SIZES, away[:, 1])
    for name, (make, rates) in OPTIMIZERS.items():
        test = functools.partial(stable, loss, data, make, rates)
        passed = np.asarray(jax.jit(jax.vmap(test))(params, keys(name)))
        steps = np.logical_and.accumulate(passed, axis=-1).sum(axis=-1)
        add(f"stable rate, {name}", STABLE_SIZES, np.where(steps > 0, rates[steps - 1], np.nan))
    return {column: np.array(values) for column, values in table.items()}


def select(data: Table, quantity: str) -> dict[int, np.ndarray]:
    """Batch size -> (networks, draws)."""
    chosen = data["quantity"] == quantity
    networks = len(np.unique(data["network"]))
    return {
        int(size): data["value"][chosen & (data["size"] == size)].reshape(networks, -1)
        for size in np.unique(data["size"][chosen])
    }


def excesses(data: Table, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1/B - 1/N, and the mean distance with its error as (networks, sizes)."""
    values = select(data, quantity)
    (total,) = select(data, COEFFICIENTS[0])
    means = [values[size].mean(axis=1) for size in SIZES]
    errors = [x.std(axis=1, ddof=1) / math.sqrt(x.shape[1]) for x in values.values()]
    return 1 / np.array(SIZES) - 1 / total, np.stack(means, axis=1), np.stack(errors, axis=1)


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """Of y as a power of x, by least squares on mean logarithms; nan where y is not positive."""
    if not (y > 0).all():
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y).mean(axis=0), 1)[0])


def within(claim: str, value: float, bounds: tuple[float, float]) -> Part:
    low, high = bounds
    return Part(claim, f"{value:.2f} (accepted: {low} to {high})", bool(low <= value <= high))


def judge(data: Table) -> list[Part]:
    parts = []
    sizes = np.array(SIZES)
    for quantity, chosen, bounds in (
        ("largest", sizes >= 32, LINEAR),
        ("largest", sizes <= 16, ROOT),
        ("smallest", sizes > 0, ROOT),
    ):
        x, away, _ = excesses(data, quantity)
        which = f"{min(sizes[chosen])} to {max(sizes[chosen])}"
        value = exponent(x[chosen], away[:, chosen])
        claim = f"distance of the {quantity} eigenvalue against 1/B - 1/N, B {which}: exponent"
        parts.append(within(claim, value, bounds))
    x, away, _ = excesses(data, "largest")
    late = sizes >= 32
    for quantity in COEFFICIENTS:
        (predicted,) = select(data, quantity).values()
        ratio = (away[:, late] / x[late]).mean(axis=1) / predicted[:, 0]
        shown = ", ".join(f"{r:.2f}" for r in ratio)
        claim = f"largest, B 32 to 512, over {quantity}, every network: within a factor 2"
        parts.append(Part(claim, shown, bool(((ratio > 0.5) & (ratio < 2)).all())))
    for name, bounds in (("SGD", LINEAR), ("Adam", ROOT)):
        rates = select(data, f"stable rate, {name}")
        value = exponent(np.array(sorted(rates)), np.stack([r[:, 0] for r in rates.values()], 1))
        claim = f"largest stable rate of {name} against B, 4 to 64: exponent"
        parts.append(within(claim, value, bounds))
    return parts


def draw_excess(axes: Axes, data: Table, quantity: str) -> None:
    """Of every network, with two standard errors; the second-order law beside the largest."""
    x, away, error = excesses(data, quantity)
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for network, color in zip(range(len(away)), colors):
        label = f"network {network + 1}"
        axes.errorbar(x, away[network], 2 * error[network], fmt="o", ms=3, color=color, label=label)
        if quantity == "largest":
            (predicted,) = select(data, COEFFICIENTS[1]).values()
            axes.plot(x, predicted[network, 0] * x, color=color, linestyle="-", linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel="1/B - 1/N")


def plot(data: Table) -> Figure:
    figure, (largest, smallest, rates) = plt.subplots(1, 3, figsize=(10, 3.6))
    draw_excess(largest, data, "largest")
    largest.set(
        title="Largest eigenvalue (lines: second order)", ylabel="distance, mean of batches"
    )
    largest.legend()
    draw_excess(smallest, data, "smallest")
    smallest.set(title="Smallest eigenvalue", ylabel="distance, mean of batches")
    for name, power in (("SGD", 1.0), ("Adam", 0.5)):
        found = select(data, f"stable rate, {name}")
        sizes = np.array(sorted(found))
        values = np.exp(np.log([found[size][:, 0] for size in sizes]).mean(axis=1))
        (line,) = rates.plot(sizes, values, "o-", ms=4, label=name)
        guide = values[0] * (sizes / sizes[0]) ** power
        rates.plot(sizes, guide, color=line.get_color(), linestyle=":", label=f"B^{power:g}")
    rates.set(title="Largest stable rate", xlabel="batch size B", yscale="log")
    rates.set_xscale("log", base=2)
    rates.legend()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to "
        "Neural Network Training",
        authors="Granziol, Zohren, Roberts",
        year=2022,
        arxiv="2006.09092",
    ),
    figure="extremal eigenvalues of batch Hessians against the batch size, and largest stable "
    "rates, of small perceptrons on scikit-learn's digits; the paper has VGG and wide residual "
    "networks on CIFAR-100 and ImageNet",
    claim="the extremal eigenvalues of a batch's Hessian are larger in magnitude than those of the "
    "full one, by a term in 1/B; the largest stable rates hence grow linearly with the batch for "
    "SGD and as its root for Adam.",
    rule="the distance of a batch's eigenvalue is from its Hessian along the full one's "
    "eigenvector, mean of 32 batches; an exponent, of mean logarithms over three networks, counts "
    f"as 1 within {LINEAR} and as 1/2 within {ROOT}; the coefficient of 1/B is compared with "
    "second-order perturbation theory, which has no free parameter; a rate is stable where 100 "
    "steps do not raise the loss.",
    measure=measure,
    judge=judge,
    plot=plot,
)
