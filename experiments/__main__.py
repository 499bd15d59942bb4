"""python -m experiments COMMAND ...: each command says more with --help."""

import importlib
import sys

COMMANDS = {
    "run": ("experiments.run", "train a config, or go on with a run"),
    "branch": ("experiments.branch", "decay from a checkpoint of a run: one run, many budgets"),
    "refine": ("experiments.refine", "from a run's gradient norms, the schedule of the next"),
    "merge": ("experiments.merge", "average checkpoints of a run, and evaluate the averages"),
    "list": ("experiments.listing", "every config with its description and expected minutes"),
    "bench": ("experiments.benchmarks.command", "measure against a named peer or a physical limit"),
    "reproduce": ("experiments.figures.command", "reproduce a figure or table, with a verdict"),
}


def main(argv: list[str]) -> int:
    name, *arguments = argv or ["--help"]
    if name in COMMANDS:
        from experiments.config import UserError

        try:
            return importlib.import_module(COMMANDS[name][0]).main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    usage = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
    print(f"usage: python -m experiments COMMAND ...\n\n{usage}")
    if name in ("-h", "--help"):
        return 0
    print(f"error: {name!r} is no command; accepted: {', '.join(COMMANDS)}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
