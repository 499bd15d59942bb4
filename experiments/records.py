"""What a run writes for people: config.json, metrics.jsonl, TensorBoard events, progress."""

import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.batch_growth import finished
from experiments.checkpoints import Counters, fields, first_difference
from experiments.config import FREE_FIELDS, Config, UserError, as_json
from experiments.environment import environment


class Records:
    """The records of one run; of several processes the first one alone writes and prints.

    Args:
        workdir: where they are kept, held by this process until `close`.
        config: what is run; the run that is there already must have the same.
        allow_changes: the run that is there may have another.
        origin: of a branch, the run and the step that it goes on from.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Config,
        allow_changes: bool = False,
        origin: Mapping[str, Any] | None = None,
    ):
        self.workdir = workdir
        self._origin = {} if origin is None else {"branched_from": dict(origin)}
        self.console = Console(quiet=jax.process_index() > 0, highlight=False)
        self.writes = jax.process_index() == 0
        _check_writable(workdir)
        self._earlier = _check_same_run(workdir, config, allow_changes)
        self._lock = _lock(workdir / ".lock") if self.writes else None
        self._progress: Progress | None = None
        self._metrics: TextIO | None = None
        self._events: tensorboardX.SummaryWriter | None = None

    def claim(self, config: Config) -> None:
        """Write that the workdir is this run's, before there is a state to begin with."""
        path = self.workdir / "config.json"
        if not path.exists():
            _write_config(path, config, self._earlier, self._origin)

    def say(self, sentence: str) -> None:
        """Print one line, above the progress bar where there is one."""
        self.console.print(sentence, soft_wrap=True, markup=False)

    def begin(
        self, config: Config, facts: Mapping[str, Any], target: Any, counters: Counters
    ) -> None:
        """Called once the state stands, at the step from which training goes on."""
        self._config, self._facts = config, facts
        self._clock, self._clock_samples = time.monotonic(), counters.samples
        step = counters.step
        if step:
            self.say(f"Resuming from the checkpoint at step {step} in {self.workdir}.")
        if not self.writes:
            return
        state = json.dumps(fields(target), sort_keys=True)
        about = {
            "data": dict(facts["provenance"]),
            "state_sha256": hashlib.sha256(state.encode()).hexdigest(),
            "environment": environment(),
        }
        path = self.workdir / "config.json"
        _write_config(path, config, self._earlier, {**self._origin, **about})
        path = self.workdir / "metrics.jsonl"
        _forget_after(path, step)
        self._metrics = path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(self.workdir / "tensorboard"), purge_step=step + 1, write_to_disk=True
        )
        if self.console.is_terminal:
            completed, total, unit = self._done(counters)
            self._progress = Progress(
                TextColumn(f"[bold]{unit}"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar = self._progress.add_task("", total=total, completed=completed, status="")
            self._progress.start()

    def _done(self, counters: Counters) -> tuple[int, int, str]:
        """How far the run is, of how much, and in what: samples where steps are not known ahead."""
        steps = self._config.steps
        if self._config.batch_growth is None:
            return counters.step, steps, "step"
        return counters.samples, steps * self._config.batch_size, "samples"

    def _where(self, counters: Counters) -> str:
        completed, total, unit = self._done(counters)
        if unit == "step":
            return f"step {completed}/{total}"
        return f"step {counters.step}, samples {completed}/{total}"

    def step(self, counters: Counters, metrics: dict[str, float], rate: Callable[[], Any]) -> None:
        """Record the metrics of the step after which the run has come so far, at the interval."""
        if self._progress is not None:
            self._progress.update(self._bar, completed=self._done(counters)[0])
        step, last = counters.step, finished(self._config, counters)
        if not self.writes or (step % self._config.log_every and not last):
            return
        now = time.monotonic()
        samples = counters.samples - self._clock_samples
        tokens = self._facts["tokens_per_sample"]
        unit = "tokens" if tokens > 1 else "samples"
        speed = samples * tokens / max(now - self._clock, 1e-9)
        self._clock, self._clock_samples = now, counters.samples
        line = {**metrics, "learning_rate": float(rate()), f"{unit}_per_second": speed}
        self._write(step, line)
        status = f"loss {metrics['loss']:.4f}  {speed:,.0f} {unit}/s"
        if self._progress is not None:
            self._progress.update(self._bar, status=status)
        else:
            self.say(f"{self._where(counters)}  {status}")

    def evaluation(self, counters: Counters, metrics: dict[str, float]) -> None:
        """Record validation metrics; the time they took counts for no step's speed."""
        self._clock, self._clock_samples = time.monotonic(), counters.samples
        if self.writes:
            values = {f"validation_{name}": value for name, value in metrics.items()}
            self._write(counters.step, values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"{self._where(counters)}  validation: {shown}")

    def _write(self, step: int, values: dict[str, float]) -> None:
        assert self._metrics is not None and self._events is not None
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        for part in (self._progress, self._events, self._metrics, self._lock):
            if part is not None:
                part.stop() if isinstance(part, Progress) else part.close()
        self._progress = self._events = self._metrics = self._lock = None


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill cut short is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(_parse, lines) if line is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Drop what was recorded after the checkpoint from which the run goes on: it comes again."""
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    _write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


def _write_whole(path: pathlib.Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old or the new text."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def _check_writable(workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror}.") from error


def _lock(path: pathlib.Path) -> TextIO:
    """Hold the workdir until the process ends, however it ends."""
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise UserError(f"--workdir={path.parent} is in use by another run.") from error
    return handle


def _check_same_run(workdir: pathlib.Path, config: Config, allow_changes: bool) -> list[Any]:
    """Raise UserError where the workdir belongs to another config; return its earlier configs."""
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists() and any((workdir / "checkpoints").iterdir()):
            raise UserError(
                f"--workdir={workdir} holds checkpoints but no config.json; choose another."
            )
        return []
    try:
        stored = json.loads(path.read_text())
        there, earlier = stored["config"], stored["earlier_configs"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a config that a run has written; choose another workdir."
        ) from error
    here = as_json(config)
    difference = first_difference(_flat(there), _flat(here))
    if difference is not None:
        difference = first_difference(_flat(_completed(there)), _flat(here))
    if difference is None:
        return earlier
    if not allow_changes:
        raise UserError(
            f"--workdir={workdir} holds a run of another config: {difference}; choose another "
            f"workdir, or pass --allow_changes to go on from its checkpoint with this config."
        )
    return [*earlier, there]


def _completed(config: Any) -> Any:
    """A stored config with the fields that have come to its classes since, by their defaults."""
    from experiments.stored import from_json  # imports every task

    try:
        return as_json(from_json(config))
    except ValueError:
        return config


def _flat(config: Any) -> dict[str, Any]:
    """Dotted field -> value, without the fields that may change between two starts of a run."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        elif prefix.split(".")[0] not in FREE_FIELDS:
            flat[prefix] = value

    visit("", config)
    return flat


def _write_config(
    path: pathlib.Path, config: Config, earlier: list[Any], about: Mapping[str, Any]
) -> None:
    record = {"config": as_json(config), "earlier_configs": earlier, **about}
    _write_whole(path, json.dumps(record, indent=2) + "\n")
