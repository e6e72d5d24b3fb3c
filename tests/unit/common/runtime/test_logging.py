"""Lines of the log as they leave a process."""

import json
import subprocess
import sys

import pytest
from notify_common.runtime.logging import LogFormat

PROGRAM = """
import logging
from notify_common.runtime.logging import LogFormat, configure_logs
configure_logs("INFO", {wanted})
log = logging.getLogger("a.module")
log.info("failed", extra={{"delivery_id": "01a2", "attempt": 3}})
log.debug("not told")
secret = "open-sesame"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a bug: %s", "ünknown")
"""


def lines_of(wanted: str) -> list[str]:
    program = PROGRAM.format(wanted=wanted)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stderr.splitlines()


@pytest.mark.parametrize("wanted", LogFormat)
def test_traceback_omits_the_values_of_variables(wanted: LogFormat) -> None:
    # The line of the program has it, and the values of its variables would.
    assert not any("open-sesame" in line for line in lines_of(f"LogFormat.{wanted.name}"))


@pytest.mark.parametrize("wanted", ["None", "LogFormat.JSON"])
def test_each_line_is_a_json_event_without_a_terminal(wanted: str) -> None:
    first, second = map(json.loads, lines_of(wanted))
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
