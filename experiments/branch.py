"""python -m experiments branch --from=WORKDIR --at=STEP --decay=STEPS [...]

Goes on from a checkpoint of a run with a decay of the learning rate, so that one run whose rate
stays at its peak gives models at many budgets. The branch is a run in a workdir of its own: the
same command continues it, and it can be branched from. The samples go on where the run was.

  --from=WORKDIR     the run, finished or still going on
  --at=STEP          its checkpoint; --config.keep_checkpoints of the run says how many it keeps
  --decay=STEPS      steps of the decay
  --stable=STEPS     steps at the peak before it (default: none). Given, STEP may be one where the
                     run is not at its peak: the branch goes back to it at once, which continues a
                     run that has decayed, as WSD-S does
  --shape=SHAPE      of the decay, as wsd_schedule has them: linear (default), 1-sqrt, harmonic, ...
  --end_value=RATE   where the decay ends (default 0); of an optimizer inside another with a peak of
                     its own, in proportion
  --workdir=DIR      default: WORKDIR/branches/STEP+STABLE+DECAY, or STEP+DECAY

WORKDIR/figures/branches.png shows the run with all branches in WORKDIR/branches.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shutil

import numpy as np

from experiments import curves
from experiments.arguments import Parser
from experiments.checkpoints import steps_of
from experiments.config import Config, Optimizer, Schedule, UserError
from experiments.optimizers import build_schedule, peak_of, with_schedules
from experiments.records import Records
from experiments.run import execute
from experiments.stored import read_config


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m experiments branch", description=__doc__)
    parser.add_argument("--from", dest="origin", type=pathlib.Path, required=True)
    parser.add_argument("--at", type=int, required=True)
    parser.add_argument("--decay", type=int, required=True)
    parser.add_argument("--stable", type=int)
    parser.add_argument("--shape", default="linear")
    parser.add_argument("--end_value", type=float, default=0.0)
    parser.add_argument("--workdir", type=pathlib.Path)
    values = parser.parse_args(argv)
    for name, least in (("decay", 1), ("stable", 0)):
        steps = getattr(values, name)
        if steps is not None and steps < least:
            raise UserError(f"branch: --{name}={steps}; accepted: an int from {least}.")
    return values


def main(argv: list[str]) -> int:
    values = parse(argv)
    origin = values.origin.absolute()
    config = read_config(origin)
    lengths = [values.at, *([] if values.stable is None else [values.stable]), values.decay]
    default = origin / "branches" / "+".join(map(str, lengths))
    workdir = (values.workdir or default).absolute()
    if not steps_of(workdir):
        find_checkpoint(origin, values.at)  # before anything is written
    if values.stable is None:
        check_peak(config.optimizer, config.steps, values.at)
    config = branched(config, values)
    source = {"workdir": str(origin), "step": values.at}
    records = Records(workdir, config, origin=source)
    with contextlib.closing(records):
        records.claim(config)
        if not steps_of(workdir):
            copy = workdir / "checkpoints" / str(values.at)
            copy_whole(find_checkpoint(origin, values.at), copy)
        status = execute(config, workdir, records, ["branch", *argv])
    if status == 0:
        records.say(f"branches    {curves.draw_branches(origin)}")
    return status


def branched(config: Config, values: argparse.Namespace) -> Config:
    """The config of a branch: more steps or fewer, and the schedule."""
    if config.optimizer.record_norms:
        raise UserError(
            "branch: the run records gradient norms, of which it holds as many as it has steps; "
            "accepted: a run without config.optimizer.record_norms."
        )
    if config.batch_growth:
        raise UserError(
            "branch: the run's batch grows, and its rate follows samples and not steps; accepted: "
            "a run without config.batch_growth."
        )
    peak = peak_of(config.optimizer)

    def decay(optimizer: Optimizer) -> Schedule:
        kwargs = {
            "decay_steps": values.decay,
            "decay_shape": values.shape,
            "end_value": values.end_value * (peak_of(optimizer) / peak),
        }
        return Schedule("wsd_schedule", kwargs)

    steps = values.at + (values.stable or 0) + values.decay
    optimizer = with_schedules(config.optimizer, decay)
    build_schedule(optimizer.schedule, optimizer.learning_rate, steps)  # what is wrong shows here
    return dataclasses.replace(config, steps=steps, optimizer=optimizer)


def check_peak(optimizer: Optimizer, steps: int, at: int) -> None:
    """Raise UserError unless the step before or after `at` has the peak of the schedule."""
    schedule = build_schedule(optimizer.schedule, optimizer.learning_rate, steps)
    before, after = float(schedule(at - 1)), float(schedule(at))
    peak = peak_of(optimizer)
    if not np.isclose([before, after], peak, rtol=1e-6, atol=0).any():
        raise UserError(
            f"branch: --at={at} is in the warm-up or the decay of the run: the rate there is "
            f"{before:.4g} and its peak {peak:.4g}; accepted: a step at the peak, or "
            f"--stable=STEPS to go back to the peak."
        )


def find_checkpoint(workdir: pathlib.Path, step: int) -> pathlib.Path:
    there = steps_of(workdir)
    if step not in there:
        raise UserError(
            f"branch: {workdir} has no checkpoint of step {step}; it has those of "
            f"{', '.join(map(str, there)) or 'no step'}, and a run with a larger "
            f"--config.keep_checkpoints keeps more."
        )
    return workdir / "checkpoints" / str(step)


def copy_whole(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a folder under another name and then rename it: what a kill leaves is no checkpoint."""
    partial = target.parent.parent / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
    except OSError as error:
        raise UserError(
            f"branch: {source} could not be copied: its run may have dropped it meanwhile."
        ) from error
    target.parent.mkdir(exist_ok=True)
    partial.rename(target)
