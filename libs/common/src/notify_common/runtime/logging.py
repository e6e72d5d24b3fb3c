"""Configure logging: one line per event, with its fields, as readable text on a terminal and as JSON elsewhere."""

import logging
import sys
from enum import StrEnum

import structlog
from structlog.typing import Processor


class LogFormat(StrEnum):
    """The format of log lines."""

    CONSOLE = "console"
    JSON = "json"


def configure_logs(level: str, log_format: LogFormat | None = None) -> None:
    """Log to stderr; without a `log_format`, use the console format on a terminal and JSON everywhere else."""
    on_terminal = sys.stderr.isatty()
    as_json = not on_terminal if log_format is None else log_format is LogFormat.JSON
    # structlog's default traceback would show the values of local variables, which may be secret.
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
    # uvicorn's startup messages duplicate ours, and httpx logs every request.
    for library in ("uvicorn.error", "httpx"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    # These libraries log every failed reconnect with a traceback. We log only the start and the end of an outage.
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
