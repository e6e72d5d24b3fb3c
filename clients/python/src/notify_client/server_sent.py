"""Parse server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSentEvent:
    """One event of a stream."""

    type: str
    data: str


class EventParser:
    """A parser of one stream, which arrives in chunks."""

    def __init__(self) -> None:
        self._unfinished_line = b""
        self._fields: dict[str, str] = {}

    def feed(self, chunk: bytes) -> Iterator[tuple[str | None, ServerSentEvent | None]]:
        """Yield a pair for each block that ends in this chunk: its id, and its event; either may be missing."""
        # Only line feeds end a line here: JSON may contain what `splitlines` takes for line breaks.
        *lines, self._unfinished_line = (self._unfinished_line + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if text:
                self._add(text)
            elif self._fields:
                fields, self._fields = self._fields, {}
                event = ServerSentEvent(fields.get("event", "message"), fields["data"]) if "data" in fields else None
                yield fields.get("id"), event

    def _add(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        if name:  # a line that begins with a colon is a comment
            self._fields[name] = value
