"""python -m experiments run --config=FILE --workdir=DIR [--config.field.field=value ...]

Trains the config, or goes on with the run that DIR holds: the same command continues it. DIR gets
config.json, metrics.jsonl, checkpoints/, figures/ and tensorboard/.

Several processes: the same command in each, with --distributed; on a TPU slice or under Slurm the
rest is found out, elsewhere add --coordinator=HOST:PORT --processes=N --process=I.
"""

import ast
import dataclasses
import logging
import pathlib
import shlex
import sys
from typing import Any

import absl.logging
import jax
from absl import flags
from ml_collections import config_flags
from rich.table import Table

from experiments import curves
from experiments.config import Config, UserError, validate
from experiments.records import Records
from experiments.train import Outcome, train


class _DictParser(flags.ArgumentParser):
    """--config.optimizer.kwargs='{"b1": 0.9}' replaces the whole dict."""

    def parse(self, argument: Any) -> dict[str, Any]:
        try:
            value = argument if isinstance(argument, dict) else ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{argument!r} is not a dict such as {{'b1': 0.9}}")
        return value


def read_flags(argv: list[str]) -> tuple[Any, flags.FlagValues, list[str]]:
    """(config, flags, what is left of argv); the flags are apart from absl's global ones."""
    values = flags.FlagValues()
    config_flags.register_flag_parser_for_type(dict, _DictParser())
    holder = config_flags.DEFINE_config_file(
        "config", help_string="The config file.", flag_values=values
    )
    define: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Where the run is kept.", **define)
    flags.DEFINE_bool("allow_changes", False, "Go on from another config's checkpoint.", **define)
    flags.DEFINE_bool("distributed", False, "Several processes work on this run.", **define)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", **define)
    flags.DEFINE_integer("processes", None, "How many processes.", **define)
    flags.DEFINE_integer("process", None, "Which one this is.", **define)
    # config_flags looks for the overrides of a config in sys.argv, whatever it is asked to parse.
    given, sys.argv = sys.argv, ["run", *argv]
    try:
        rest = values(sys.argv)[1:]
    finally:
        sys.argv = given
    return holder.value, values, rest


def parse(argv: list[str]) -> tuple[Config, flags.FlagValues]:
    """The config with its overrides, and the other flags."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    if not files:
        raise UserError("--config=FILE is missing; `python -m experiments list` shows the configs.")
    for file in files:
        if not pathlib.Path(file.partition(":")[0]).is_file():
            raise UserError(f"--config={file}: there is no such file.")
    try:
        config, values, rest = read_flags(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')}.") from error
    except (KeyError, AttributeError) as error:
        raise UserError(_unknown_field(argv, files[-1], error)) from error
    if rest:
        raise UserError(f"{rest[0]!r} is no flag; accepted: --name=value.")
    if not isinstance(config, Config):
        raise UserError(f"--config={files[-1]}: get_config() returns no experiments.config.Config.")
    if not values.workdir:
        raise UserError("--workdir=DIR is missing; the run is kept there and resumed from there.")
    validate(config)
    return config, values


def _unknown_field(argv: list[str], file: str, error: Exception) -> str:
    """A sentence that names the first override whose field does not exist, and those that do."""
    config, _, _ = read_flags([f"--config={file}"])
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        node, where = config, "config"
        for name in argument[2:].partition("=")[0].split(".")[1:]:
            accepted = _fields(node)
            if name not in accepted:
                return f"{where} has no field {name!r}; accepted: {', '.join(accepted) or 'none'}."
            node, where = accepted[name], f"{where}.{name}"
    return str(error)


def _fields(node: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(node):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    return node if isinstance(node, dict) else {}


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & {*argv}:
        print(__doc__)
        return 0
    config, values = parse(argv)
    if values.distributed:
        _join(values)
    workdir = pathlib.Path(values.workdir).absolute()
    records = Records(workdir, config, values.allow_changes)
    status = execute(config, workdir, records, ["run", *argv])
    if records.writes and status == 0:
        records.say(
            "optimizer   --config.optimizer.name=lion --config.optimizer.learning_rate=3e-4, "
            "and another --workdir"
        )
    return status


def execute(config: Config, workdir: pathlib.Path, records: Records, command: list[str]) -> int:
    """Train, draw, and report; `command` is what goes on with this run. Closes the records."""
    quiet()
    try:
        outcome = train(config, workdir, records)
    except KeyboardInterrupt:
        records.say(
            f"Interrupted; the same command goes on from the newest checkpoint in {workdir}."
        )
        return 130
    finally:
        records.close()
        if records.writes:
            figures = curves.draw(workdir)
    if records.writes:
        report(outcome, records, workdir, figures, command)
    return 0


def quiet() -> None:
    """Leave to us what is said of checkpoints."""
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    absl.logging.set_verbosity(absl.logging.ERROR)


def _join(values: flags.FlagValues) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(values.coordinator, values.processes, values.process)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {str(error).splitlines()[0]}") from error


def _python() -> str:
    """This interpreter, as a person in this folder would call it."""
    here, python = pathlib.Path.cwd(), pathlib.Path(sys.executable)
    return str(python.relative_to(here)) if python.is_relative_to(here) else "python"


def report(
    outcome: Outcome,
    records: Records,
    workdir: pathlib.Path,
    figures: list[pathlib.Path],
    command: list[str],
) -> None:
    """The closing table: the baselines of the task and the model, by the task's primary metric."""
    facts = outcome.task.facts
    primary = facts["primary"]
    table = Table(title=f"validation {primary.replace('_', ' ')}")
    table.add_column("model")
    table.add_column(primary, justify="right")
    for name, value in facts["baselines"].items():
        table.add_row(name, f"{value:.4f}")
    table.add_row("this run", f"{outcome.metrics[primary]:.4f}", style="bold")
    records.console.print(table)
    provenance = ", ".join(f"{name} {value}" for name, value in facts["provenance"].items())
    records.say(f"data        {provenance}")
    for path in figures:
        records.say(f"figure      {path}")
    records.say(f"resume      {_python()} -m experiments {shlex.join(command)}")
    records.say(f"tensorboard {_python()} -m tensorboard.main --logdir {workdir / 'tensorboard'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
