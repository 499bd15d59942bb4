"""Command lines whose mistakes are one sentence."""

import argparse
from typing import Any, NoReturn

from experiments.config import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError, and whose help is the description as it stands."""

    def __init__(self, **options: Any):
        super().__init__(
            **options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.split()[-1]}: {message.rstrip('.')}.")

    def format_help(self) -> str:
        return f"{self.description}"
