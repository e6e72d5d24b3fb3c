"""What the commands of the local stack print."""

import sys

from rich.console import Console

PLAIN_WIDTH = 120  # columns, where there is no terminal to ask

console = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def say(line: str) -> None:
    """Print one line, at once."""
    console.print(line, markup=False)
