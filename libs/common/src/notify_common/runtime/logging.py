"""Configure logging: one line per event, with its fields, as readable text on a terminal and as JSON elsewhere."""

import json
import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from enum import StrEnum
from textwrap import indent
from traceback import format_exception
from typing import Any, TextIO

import structlog
from structlog.typing import ExcInfo, Processor

# C0 and C1 controls and DEL, separators of lines and paragraphs, and the controls that change the direction of text.
# Clients and providers must not use them in a path, a name or an error to forge lines, or to control the terminal.
CONTROL_CHARACTERS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""The inside of a character class of a regular expression."""
CONTROLS = re.compile(f"[{CONTROL_CHARACTERS}]")


class LogFormat(StrEnum):
    """The format of log lines."""

    CONSOLE = "console"
    JSON = "json"


def configure_logs(level: str, log_format: LogFormat | None = None) -> None:
    """Log to stderr; without a `log_format`, use the console format on a terminal and JSON everywhere else."""
    on_terminal = sys.stderr.isatty()
    as_json = not on_terminal if log_format is None else log_format is LogFormat.JSON
    rendering: list[Processor] = [
        _escape_texts,
        structlog.dev.ConsoleRenderer(colors=on_terminal, pad_event_to=0, exception_formatter=_write_traceback),
    ]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=level, handlers=[handler])
    # uvicorn's startup messages duplicate ours, and it warns of every malformed request, so that anyone could fill the
    # logs. httpx logs every request.
    for library, lowest in (("uvicorn.error", logging.ERROR), ("httpx", logging.WARNING)):
        logging.getLogger(library).setLevel(max(lowest, logging.getLogger().level))
    # These libraries log every failed reconnect with a traceback. We log only the start and the end of an outage.
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def escape_controls(text: str) -> str:
    """Return the text with its control characters escaped, as `\\n` for example."""
    # This check is fast, and almost every text passes it.
    return text if text.isprintable() else CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def _escape_texts(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape the control characters in the names and texts of an event. Other values are shown with `repr`."""
    return {
        escape_controls(name): escape_controls(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }


def _to_json(event: object, default: Callable[[object], object]) -> str:
    """Return readable JSON, in which those control characters are escaped, too, that JSON allows."""
    text = json.dumps(event, ensure_ascii=False, default=default)
    return text if text.isprintable() else CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _write_traceback(output: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback without the values of local variables, which may be secret.

    It is indented, so that an error's text cannot look like a line of the log.
    """
    lines = "".join(format_exception(*exc_info)).splitlines()
    output.write("\n" + indent("\n".join(map(escape_controls, lines)), "    "))
