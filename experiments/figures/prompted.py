"""A small language model and a task that a prompt turns into its own: is a line prose or code?

The model is a decoder of 0.16 M parameters on bytes, trained on the training files of the Python
standard library's sources. A sample is the start of a line of the validation files, 40 bytes: of a
docstring (prose) or of a statement. With the prompt, a new line and its indentation follow, and the
classes are the next byte: "t" as of *the*, or "s" as of *self*. Without it a new head of two
columns reads the logits of the line's last byte.

`sweep` runs a method for a budget of losses of 16 samples: rates by factors of the root of 10 from
one that is given until the best has a worse one on either side, by the loss on all training
samples; then the best rate from other seeds. What is reported is of the test samples.
"""

import functools
import io
import math
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zeroth_order
from experiments.data.text import BOUNDARY, standard_library
from experiments.figures.decoder_optimizers import descend
from experiments.figures.target import Table
from experiments.models.decoder import Decoder
from experiments.models.model import Model

BYTES, PROMPT, CLASSES = 40, b"\n    ", (b"s", b"t")
TRAINED_ON, BATCH, WINDOW = 1024, 16, 64
ALONG = zeroth_order.direction(stack={"blocks/.*": 1})
STEPS, STEPS_QUICK = 800, 4  # of pretraining
KEPT = Path("runs", "prompted")
COLUMNS = ("method", "rate", "seed", "train_loss", "test_loss", "test_accuracy")


class Samples(NamedTuple):
    """Lines and what they are."""

    text: jax.Array  # (samples, bytes), int32
    label: jax.Array  # (samples,), int32: 0 of code, 1 of prose


class Pretrained(NamedTuple):
    """The model, its parameters, and the task."""

    model: Model
    params: Any
    train: Samples
    test: Samples


class Setting(NamedTuple):
    """A method to be tuned and compared."""

    make: Callable[[Any, Any], zeroth_order.Algorithm]  # loss_fn, rate -> algorithm
    start: float  # the first rate
    evaluations: int  # losses a step
    params: Any = None  # to start from; None: the pretrained ones
    prompt: bool = True


def lines(source: str) -> Iterator[tuple[bytes, int]]:
    """Starts of lines of BYTES bytes without indentation, with their class."""
    prose: set[int] = set()
    code: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            where = range(token.start[0], token.end[0] + 1)
            if token.type == tokenize.STRING and token.string.startswith(('"""', 'r"""')):
                prose.update(where)
            elif token.type == tokenize.NAME:
                code.update(where)
    except (tokenize.TokenError, SyntaxError):
        return
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip().encode()
        if len(text) >= BYTES and (number in prose) != (number in code):
            yield text[:BYTES], int(number in prose)


def samples(text: np.ndarray) -> tuple[Samples, Samples]:
    """Train and test, with as many lines of each class, in an order drawn once."""
    found: dict[int, list[bytes]] = {0: [], 1: []}
    for source in text.tobytes().split(BOUNDARY):
        for line, label in lines(source.decode(errors="ignore")):
            found[label].append(line)
    draw = np.random.default_rng(0)
    each = min(len(of) for of in found.values())
    chosen = [(line, label) for label in found for line in draw.permutation(found[label])[:each]]
    order = draw.permutation(len(chosen))
    read = np.stack([np.frombuffer(chosen[i][0], np.uint8) for i in order]).astype(np.int32)
    labels = np.array([chosen[i][1] for i in order], np.int32)
    both = Samples(jnp.asarray(read), jnp.asarray(labels))
    train = Samples(*(x[:TRAINED_ON] for x in both))
    return train, Samples(*(x[TRAINED_ON:] for x in both))


@functools.cache
def pretrained(steps: int) -> Pretrained:
    """The model after so many steps, kept in a file between runs."""
    model = Decoder(vocabulary=256, width=64, layers=3, heads=2, hidden=160).build()
    text, file = standard_library(), KEPT / f"{steps}.npz"
    like = model.init(jax.random.key(0))
    if file.exists():
        with np.load(file, allow_pickle=False) as kept:
            arrays = [jnp.asarray(kept[f"arr_{i}"]) for i in range(len(kept.files))]
        params = jax.tree.unflatten(jax.tree.structure(like), arrays)
    else:
        params = _trained(model, like, text.train, steps)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, *(np.asarray(x) for x in jax.tree.leaves(params)))
    return Pretrained(model, params, *samples(text.validation))


def _trained(model: Model, params: Any, text: np.ndarray, steps: int) -> Any:
    """AdamW on 64 windows of 64 bytes a step."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, max(1, steps // 10), steps)
    tx = optax.adamw(rate, b2=0.98, weight_decay=0.01)

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        logits = model.apply(params, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    @jax.jit
    def step(carry: Any, windows: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, windows.astype(jnp.int32))
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    carry, draw = (params, tx.init(params)), np.random.default_rng(0)
    for _ in range(steps):
        starts = draw.integers(0, text.size - WINDOW - 1, 64)
        carry, value = step(carry, text[starts[:, None] + np.arange(WINDOW + 1)])
    print(f"  pretrained to {float(value) / math.log(2):.2f} bits per byte", flush=True)
    return carry[0]


def logits(model: Model, params: Any, text: jax.Array, prompt: bool) -> jax.Array:
    """(samples, 2), float32; without a prompt by the head params["classes"], (vocabulary, 2)."""
    if not prompt:
        return model.apply(params, text)[:, -1] @ zeroth_order.read(params["classes"])
    asked = jnp.asarray(np.frombuffer(PROMPT, np.uint8).astype(np.int32))
    whole = jnp.concatenate([text, jnp.broadcast_to(asked, (len(text), asked.size))], axis=1)
    return model.apply(params, whole)[:, -1, np.array([c[0] for c in CLASSES])]


def losses(model: Model, prompt: bool, params: Any, batch: Samples) -> jax.Array:
    """(samples,), nats."""
    found = logits(model, params, batch.text, prompt)
    return optax.softmax_cross_entropy_with_integer_labels(found, batch.label)


def scores(known: Pretrained, prompt: bool, params: Any) -> jax.Array:
    """(3,): loss on the training samples; loss and accuracy on the others."""

    def of(data: Samples) -> tuple[jax.Array, jax.Array]:
        right = jnp.argmax(logits(known.model, params, data.text, prompt), axis=1) == data.label
        return jnp.mean(losses(known.model, prompt, params, data)), jnp.mean(right)

    return jnp.stack([of(known.train)[0], *of(known.test)])


def before(known: Pretrained, params: Any) -> tuple[float, ...]:
    """The scores of parameters as they are, with the prompt."""
    return tuple(map(float, jax.jit(functools.partial(scores, known, True))(params)))


def runner(
    known: Pretrained, setting: Setting, budget: int
) -> Callable[[float, int], tuple[float, ...]]:
    """(rate, seed) -> scores after the budget, one program for all."""
    loss = functools.partial(losses, known.model, setting.prompt)
    first = known.params if setting.params is None else setting.params

    @jax.jit
    def run(rate: jax.Array, seed: jax.Array) -> jax.Array:
        algorithm = setting.make(loss, rate)
        of_noise, of_batches = jax.random.split(jax.random.key(seed))

        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            index = jax.random.randint(key, (BATCH,), 0, len(known.train.label))
            batch = Samples(*(x[index] for x in known.train))
            return algorithm.update(state, batch)[0], None

        keys = jax.random.split(of_batches, budget // setting.evaluations)
        state, _ = jax.lax.scan(step, algorithm.init(first, of_noise), keys)
        return scores(known, setting.prompt, state.params)

    return lambda rate, seed: tuple(map(float, run(jnp.float32(rate), jnp.int32(seed))))


def sweep(
    known: Pretrained, settings: Mapping[str, Setting], budget: int, seeds: int
) -> list[tuple[Any, ...]]:
    """A row for each run, columns as COLUMNS; the last of a method are of its best rate."""
    return [row for name in settings for row in _tuned(known, name, settings[name], budget, seeds)]


def _tuned(
    known: Pretrained, name: str, setting: Setting, budget: int, seeds: int
) -> list[tuple[Any, ...]]:
    run = runner(known, setting, budget)
    found: dict[int, tuple[Any, ...]] = {}

    def at(power: int, seed: int = 0) -> tuple[Any, ...]:
        rate = setting.start * 10 ** (power / 2)
        row = (name, rate, seed, *run(rate, seed))
        print(f"  {name:28} rate {rate:.3g} seed {seed}: {row[4]:.4f} {row[5]:.3f}", flush=True)
        return row

    def value(power: int) -> float:
        if power not in found:
            found[power] = at(power)
        loss = found[power][3]
        return loss if math.isfinite(loss) else math.inf

    best = descend(value)
    rest = [found[power] for power in sorted(found) if power != best]
    return [*rest, found[best], *(at(best, seed) for seed in range(1, seeds))]


def as_table(rows: list[tuple]) -> dict[str, np.ndarray]:
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(COLUMNS, columns, strict=True)}


def finals(data: Table, column: str) -> dict[str, np.ndarray]:
    """All seeds of each method at its tuned rate."""
    found = {}
    for name in dict.fromkeys(data["method"].tolist()):
        mine = data["method"] == name
        rate = data["rate"][mine][-1]
        found[name] = data[column][mine & (data["rate"] == rate)]
    return found


def spread(values: np.ndarray) -> str:
    """Mean and deviation over seeds."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def lower(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the mean of one is below the other's by two standard errors of their difference."""
    error = math.hypot(one.std(ddof=1), other.std(ddof=1)) / math.sqrt(len(one))
    return bool(other.mean() - one.mean() > 2 * error)
