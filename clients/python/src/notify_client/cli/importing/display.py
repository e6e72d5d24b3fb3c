"""The progress of an import: live bars on a terminal, and otherwise a line every few seconds."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from notify_client.cli.output import console

LINE_INTERVAL = 2.0  # seconds


class Display:
    """A display on the standard error."""

    def __init__(self, rows: int, *, following: bool) -> None:
        self._rows = rows
        self._console = console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._accepted_bar = self._bars.add_task("accepted", total=rows)
        self._final_bar = self._bars.add_task("final", total=rows) if following else None
        self._next_line = time.monotonic() + LINE_INTERVAL

    def show(self, accepted: int, final: int) -> None:
        """Update the display."""
        self._bars.update(self._accepted_bar, completed=accepted)
        if self._final_bar is not None:
            self._bars.update(self._final_bar, completed=final)
        if self._bars.disable and time.monotonic() > self._next_line:
            more = "" if self._final_bar is None else f", final {final}"
            self._console.print(f"accepted {accepted} of {self._rows}{more}")
            self._next_line = time.monotonic() + LINE_INTERVAL

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()
