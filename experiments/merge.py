"""python -m experiments merge --from=WORKDIR [...]

Merges checkpoints of a finished run, and evaluates each of them and each merge on the validation
set. Checkpoints are of the parameters that are trained, averages of the run's own left aside.

  --from=WORKDIR       the run; --config.keep_checkpoints of it says how many it keeps
  --steps=100,200,300  its checkpoints (default: all that it keeps)
  --weights=KIND,...   uniform, ema, step, loss, lcsc (default: uniform,ema,step,loss). By step and
                       by loss weights are in the proportion of a power of it
  --decay=NUMBER       of ema, a checkpoint (default 0.5)
  --power=NUMBER       of the step, and of one over the loss (default 1)
  --evaluations=COUNT  of lcsc, the validation set each time (default 100)

Weights by loss, and lcsc, see the metric on the validation set: what they gain there is no test.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

import optim
from experiments.arguments import Parser
from experiments.checkpoints import read_params, steps_of
from experiments.config import UserError
from experiments.mesh import make_mesh, place_batch
from experiments.run import quiet
from experiments.stored import read_config
from experiments.table import table
from experiments.train import build_program

KINDS = ("uniform", "ema", "step", "loss", "lcsc")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m experiments merge", description=__doc__)
    parser.add_argument("--from", dest="origin", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=lambda text: [int(s) for s in text.split(",")])
    parser.add_argument("--weights", type=lambda text: text.split(","), default=list(KINDS[:4]))
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--power", type=float, default=1.0)
    parser.add_argument("--evaluations", type=int, default=100)
    values = parser.parse_args(argv)
    for kind in values.weights:
        if kind not in KINDS:
            raise UserError(f"merge: --weights has {kind!r}; accepted: {', '.join(KINDS)}.")
    return values


def main(argv: list[str]) -> int:
    values = parse(argv)
    origin = values.origin.absolute()
    config = read_config(origin)
    steps = sorted(set(values.steps or steps_of(origin)))
    if len(steps) < 2:
        raise UserError(f"merge: there are {len(steps)} checkpoints to merge; accepted: 2 or more.")
    quiet()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        program = build_program(config, mesh)
        task, target = program.task, program.target.params
        primary = task.facts["primary"]
        checkpoints = [read_params(origin / "checkpoints", step, target) for step in steps]

        def evaluate(params: Any) -> dict[str, float]:
            return task.evaluate(params, functools.partial(place_batch, mesh=mesh))

        rows = {f"step {s}": evaluate(p) for s, p in zip(steps, checkpoints, strict=True)}
        losses = [metrics[primary] for metrics in rows.values()]

        def search() -> jax.Array:
            return optim.lcsc(
                checkpoints,
                lambda params: evaluate(params)[primary],
                jax.random.key(0),
                evaluations=values.evaluations,
            )[0]

        for kind in values.weights:
            weights = weights_of(kind, values, steps, losses, search)
            name = f"{kind}: {', '.join(f'{w:.2f}' for w in weights.tolist())}"
            rows[name] = evaluate(optim.combine_checkpoints(checkpoints, weights))
    header = [*next(iter(rows.values()))]
    cells = [[row, *(f"{metrics[m]:.5g}" for m in header)] for row, metrics in rows.items()]
    print(table(["parameters", *header], cells))
    return 0


def weights_of(
    kind: str,
    values: argparse.Namespace,
    steps: list[int],
    losses: list[float],
    search: Callable[[], jax.Array],
) -> jax.Array:
    """The weights of one kind; `search` finds those of lcsc."""
    makers = {
        "uniform": lambda: optim.latest_weights(len(steps), len(steps)),
        "ema": lambda: optim.ema_weights(len(steps), values.decay),
        "step": lambda: optim.power_weights(steps, values.power),
        "loss": lambda: optim.power_weights(losses, -values.power),
        "lcsc": search,
    }
    try:
        return makers[kind]()
    except ValueError as error:
        raise UserError(f"merge: --weights={kind}: {error}") from error
