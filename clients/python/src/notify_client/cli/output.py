"""Write to the terminal, to a pipe, or as JSON."""

import json
import re
import sys
from collections.abc import Iterable, Mapping

from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000  # columns: a pipe has no width, so nothing is folded
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
ESCAPED = re.compile(r"[\x7f-\x9f]")
IDS = {"id", "delivery", "job"}  # columns that stay in one piece on narrow terminals, to be copied
STYLES = {
    "sent": "green", "accepted": "green", "failed": "red", "rejected": "red", "partially_sent": "yellow",
    "retrying": "yellow", "throttled": "yellow", "expired": "magenta", "cancelled": "magenta",
}  # fmt: skip


def one_line(text: object) -> str:
    """Return text from elsewhere without control characters, which could command the terminal."""
    return CONTROL.sub(" ", str(text)).strip()


def console(*, stderr: bool = False) -> Console:
    """Return a console that interprets no markup. It honours NO_COLOR, and writes no colours into pipes."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True,
        width=None if is_terminal else UNLIMITED,
    )  # fmt: skip


def styled(name: str) -> Text:
    """Return a status in its colour."""
    return Text(one_line(name), STYLES.get(name, ""))


def table(*columns: str, rows: Iterable[Iterable[object]]) -> Table:
    """Return a table without lines, which other programs can read, too."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column.upper(), overflow="fold", no_wrap=column in IDS)
    for row in rows:
        cells = (cell if isinstance(cell, Text) else Text(one_line("-" if cell is None else cell)) for cell in row)
        result.add_row(*cells)
    return result


def show(content: RenderableType) -> None:
    """Print tables. In a pipe, the lines do not end with the padding of the last column."""
    output = console()
    if output.is_terminal:
        output.print(content)
        return
    with output.capture() as captured:
        output.print(content)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().rstrip("\n").split("\n")))
    sys.stdout.flush()


def show_rows(rows: Table, none: str) -> None:
    """Print a table. If it has no rows, write the remark instead."""
    if rows.row_count:
        show(rows)
    else:
        note(none)


def note(message: str) -> None:
    """Write a remark to the standard error, so that it is not mixed with results."""
    console(stderr=True).print(Text(one_line(message)))


def print_json(content: BaseModel | Mapping[str, object] | Iterable[BaseModel | Mapping[str, object]]) -> None:
    """Print one document."""
    data = _plain(content) if isinstance(content, BaseModel | Mapping) else [_plain(each) for each in content]
    _write(json.dumps(data, indent=2, ensure_ascii=False))


def print_json_line(content: BaseModel) -> None:
    """Print one line of a stream."""
    _write(json.dumps(_plain(content), ensure_ascii=False))


def _plain(content: BaseModel | Mapping[str, object]) -> object:
    return content.model_dump(mode="json", exclude_none=True) if isinstance(content, BaseModel) else dict(content)


def _write(document: str) -> None:
    sys.stdout.write(ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", document) + "\n")
    sys.stdout.flush()
