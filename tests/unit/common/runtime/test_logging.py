"""The log lines that a process writes."""

import json
import subprocess
import sys

import pytest
from notify_common.runtime.logging import LogFormat

PROGRAM = """
import logging
from notify_common.runtime.logging import LogFormat, configure_logs
configure_logs("INFO", {log_format})
log = logging.getLogger("a.module")
log.info("failed", extra={{"delivery_id": "01a2", "attempt": 3}})
log.debug("not logged")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")  # one line per request of anyone
secret = "open-sesame"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a bug: %s", "ünknown")
"""


def lines_of(log_format: str) -> list[str]:
    program = PROGRAM.format(log_format=log_format)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stderr.splitlines()


@pytest.mark.parametrize("log_format", LogFormat)
def test_traceback_omits_variable_values(log_format: LogFormat) -> None:
    # A traceback that included variable values would leak the secret.
    assert not any("open-sesame" in line for line in lines_of(f"LogFormat.{log_format.name}"))


@pytest.mark.parametrize("log_format", ["None", "LogFormat.JSON"])
def test_each_log_line_is_a_json_event_if_stderr_is_not_a_terminal(log_format: str) -> None:
    first, second = map(json.loads, lines_of(log_format))
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "failed", "level": "info", "logger": "a.module", "delivery_id": "01a2", "attempt": 3}
    assert (second["event"], second["level"]) == ("a bug: ünknown", "error")
    assert "ZeroDivisionError" in second["exception"]


def test_console_format_is_plain_text() -> None:
    line, *others = lines_of(f"LogFormat.{LogFormat.CONSOLE.name}")
    assert "ZeroDivisionError" in "\n".join(others)
    assert "failed" in line
    assert "delivery_id=01a2" in line
    assert "{" not in line
