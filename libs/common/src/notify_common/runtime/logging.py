"""Logs: an event and its fields per line, for a reader on a terminal or as JSON; those of libraries go the same way."""

import logging
import sys
from enum import StrEnum

import structlog
from structlog.typing import Processor


class LogFormat(StrEnum):
    """How lines look."""

    CONSOLE = "console"
    JSON = "json"


def configure_logs(level: str, wanted: LogFormat | None = None) -> None:
    """Write to stderr; where nothing is `wanted`, a terminal gets lines for a reader and anything else JSON."""
    on_terminal = sys.stderr.isatty()
    as_json = not on_terminal if wanted is None else wanted is LogFormat.JSON
    # Not the one that shows what variables held.
    plain = structlog.dev.plain_traceback
    rendering: list[Processor] = [
        structlog.dev.ConsoleRenderer(colors=on_terminal, pad_event_to=0, exception_formatter=plain)
    ]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=level, handlers=[handler])
    # Its lines about its own start say nothing that ours do not.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
    # A line for each request that it makes.
    logging.getLogger("httpx").setLevel(max(logging.WARNING, logging.getLogger().level))
    # They report each try to reconnect, with its traceback; what is lost and what is back we say ourselves.
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
