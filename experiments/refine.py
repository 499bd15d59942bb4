"""python -m experiments refine WORKDIR [--filter_width=WIDTH]

Makes from the gradient norms of a finished run the learning-rate schedule of the next one. The run
must have recorded them: --config.optimizer.record_norms=l1 (for Adam and what is like it) or l2
(for SGD). WORKDIR/refined/ gets

  config.py      the run's config under the refined schedule: python -m experiments run
                 --config=WORKDIR/refined/config.py --workdir=DIR; tune its learning rate again
  schedule.npz   values, a multiplier of the learning rate a step; norms; filtered, the running
                 median of these that the values are made from
  schedule.png   the norms, and the schedule beside the one that the run had

  --filter_width=WIDTH   of the running median: an odd number of steps, or a fraction of the run
                         (default 0.1)
"""

import argparse
import contextlib
import dataclasses
import math
import pathlib
import pprint
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optim
from experiments.arguments import Parser
from experiments.arrays import fingerprint
from experiments.checkpoints import Checkpoints
from experiments.config import Config, Mesh, UserError
from experiments.curves import STYLE
from experiments.mesh import make_mesh
from experiments.optimizers import build_schedule, peak_of, with_schedules
from experiments.records import Records
from experiments.run import quiet
from experiments.stored import read_config
from experiments.train import build_program
from optim.schedules.refined import median_filter, window

CONFIG_FILE = '''\
"""The config of {workdir}
under the schedule that its gradient norms refine.
"""

import pathlib

{imports}

FILE = pathlib.Path(__file__).resolve().with_name("schedule.npz")
VALUES = StoredArray(
    str(FILE), "values", "{sha256}"
)
SCHEDULE = Schedule("array_schedule", {{"values": VALUES}})


def get_config() -> Config:
    return {config}
'''


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m experiments refine", description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--filter_width", type=width, default=0.1)
    return parser.parse_args(argv)


def width(text: str) -> int | float:
    """A count where it is written as an integer, else a fraction."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def main(argv: list[str]) -> int:
    values = parse(argv)
    workdir = values.workdir.absolute()
    config = read_config(workdir)
    arrays = refined(config, read_norms(workdir, config), values.filter_width)
    folder = workdir / "refined"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "schedule.npz", **arrays)  # type: ignore[arg-type]
    (folder / "config.py").write_text(config_file(workdir, config, arrays["values"]))
    draw(folder / "schedule.png", config, arrays)
    print(f"schedule    {folder / 'schedule.npz'}")
    print(f"figure      {folder / 'schedule.png'}")
    print(f"next run    python -m experiments run --config={folder / 'config.py'} --workdir=DIR")
    return 0


def read_norms(workdir: pathlib.Path, config: Config) -> np.ndarray:
    """The norms that a finished run has recorded, one a step.

    Raises:
        UserError: the run is not finished or in use, or has recorded no norms or not all.
    """
    if not config.optimizer.record_norms:
        raise UserError(
            f"refine: {workdir} has recorded no gradient norms; a run with "
            f"--config.optimizer.record_norms=l1 (for Adam) or l2 (for SGD) does."
        )
    if config.batch_growth:
        raise UserError(
            "refine: the run's batch grows, and its rate follows samples and not steps; accepted: "
            "a run without config.batch_growth."
        )
    quiet()
    mesh = make_mesh(Mesh())
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(contextlib.closing(Records(workdir, config)))
        stack.enter_context(jax.set_mesh(mesh))
        program = build_program(config, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
        stack.callback(checkpoints.close)
        found = checkpoints.restore(program.target, records.say)
    if found is None or found[1].step < config.steps:
        step = 0 if found is None else found[1].step
        raise UserError(
            f"refine: {workdir} is at step {step} of {config.steps}; accepted: a finished run."
        )
    record = optax.tree.get(found[0].optimizer, "RecordGradientNormsState")
    if int(record.steps) < config.steps:
        raise UserError(
            f"refine: {workdir} has the norms of {int(record.steps)} of {config.steps} steps: the "
            f"others were not finite and left out."
        )
    return np.asarray(record.norms)


def refined(config: Config, norms: np.ndarray, filter_width: int | float) -> dict[str, np.ndarray]:
    """values, norms and filtered norms, each one a step."""
    norm = config.optimizer.record_norms
    try:
        values = optim.refine_schedule(norms, norm=norm, filter_width=filter_width)
        width = window(filter_width, len(norms))
    except ValueError as error:
        raise UserError(f"refine: {error}") from error
    filtered = median_filter(jnp.asarray(norms), width)
    return {"values": np.asarray(values), "norms": norms, "filtered": np.asarray(filtered)}


class _Name(str):
    """A name in Python's source: its repr is itself."""

    def __repr__(self) -> str:
        return str(self)


def config_file(workdir: pathlib.Path, config: Config, values: np.ndarray) -> str:
    """Python source of the config under the schedule of these values."""
    named: Any = _Name("SCHEDULE")
    config = dataclasses.replace(
        config, optimizer=with_schedules(config.optimizer, lambda _: named)
    )
    lines = pprint.pformat(config, sort_dicts=False, width=89).splitlines()
    needed = {("experiments.config", name) for name in ("Config", "Schedule", "StoredArray")}
    _imports(config, needed)
    modules = sorted({module for module, _ in needed})
    imports = [
        f"from {module} import {', '.join(sorted(n for m, n in needed if m == module))}"
        for module in modules
    ]
    return CONFIG_FILE.format(
        workdir=workdir,
        imports="\n".join(imports),
        sha256=fingerprint(values),
        config=("\n" + " " * len("    return ")).join(lines),
    )


def _imports(value: Any, needed: set[tuple[str, str]]) -> None:
    """Add (module, name) of everything that the repr of a config names."""
    if isinstance(value, float) and not math.isfinite(value):
        needed.add(("math", repr(abs(value))))
    if dataclasses.is_dataclass(value):
        kind = type(value)
        public = kind.__module__.startswith("optim.")
        needed.add(("optim" if public else kind.__module__, kind.__name__))
        value = vars(value)
    if isinstance(value, dict):
        value = (*value.keys(), *value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _imports(item, needed)


def draw(path: pathlib.Path, config: Config, arrays: dict[str, np.ndarray]) -> None:
    """Norms above, multipliers of the learning rate below."""
    optimizer = config.optimizer
    schedule = build_schedule(optimizer.schedule, optimizer.learning_rate, config.steps)
    old = jax.vmap(schedule)(jnp.arange(config.steps)) / peak_of(optimizer)
    steps = np.arange(1, config.steps + 1)
    with plt.style.context(STYLE):
        figure, (above, below) = plt.subplots(2, sharex=True, figsize=(5.0, 4.4))
        above.plot(steps, arrays["norms"], alpha=0.4, linewidth=0.8, label="recorded")
        above.plot(steps, arrays["filtered"], label="running median")
        above.set(yscale="log", ylabel=f"{optimizer.record_norms} norm of the gradient")
        below.plot(steps, old, label="of the run")
        below.plot(steps, arrays["values"], label="refined")
        below.set(xlabel="step", ylabel="learning rate / peak")
        for axes in (above, below):
            axes.legend()
        figure.savefig(path)
        plt.close(figure)
