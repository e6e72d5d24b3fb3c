"""Progress messages with the minutes and seconds since the start of the benchmark."""

import time

import psutil
from rich.console import Console

_console = Console(soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Print a message; indent its further lines to align with the first."""
    minutes, seconds = divmod(int(time.time() - psutil.Process().create_time()), 60)
    _console.print(f"{minutes:>3}:{seconds:02}  " + text.rstrip("\n").replace("\n", "\n        "), markup=False)
