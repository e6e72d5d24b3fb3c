"""Console output of the local stack's commands, and the error that ends a command."""

import sys

from rich.console import Console

PLAIN_WIDTH = 120  # columns, when the output is not a terminal

console = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


class CannotRun(Exception):
    """The command cannot continue on this machine or in this folder. The message says why and what to do."""


def say(line: str) -> None:
    """Print `line` without interpreting markup in it."""
    console.print(line, markup=False)
