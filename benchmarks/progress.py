"""What a benchmark says while it runs: each line with the minutes and seconds since its start."""

import time

import psutil
from rich.console import Console

_console = Console(soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """One line, or more: the further ones stand under the first."""
    minutes, seconds = divmod(int(time.time() - psutil.Process().create_time()), 60)
    _console.print(f"{minutes:>3}:{seconds:02}  " + text.rstrip("\n").replace("\n", "\n        "), markup=False)
