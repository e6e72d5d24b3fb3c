"""Log lines cannot be forged, and do not control the terminal, whatever clients and providers send."""

import json
import logging
import sys
from collections.abc import Callable, Iterator

import pytest
from notify_common.runtime.logging import LogFormat, configure_logs

log = logging.getLogger("notify.test")
FORGED = "2026-01-02T03:04:05Z [error    ] the database is lost"
CONTROLS = [
    "\n",
    "\r",
    "\x1b",
    "\x07",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\u061c",
    "\u200f",
]


@pytest.fixture
def rendered(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[LogFormat], None]]:
    """Return a function that configures the format; the root logger is restored afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def configure(log_format: LogFormat) -> None:
        root.handlers.clear()
        configure_logs("INFO", log_format)

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)
    capsys.readouterr()


def fail(text: object) -> None:
    raise ValueError(text)


def written(capsys: pytest.CaptureFixture[str]) -> str:
    sys.stderr.flush()
    return capsys.readouterr().err


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize("log_format", LogFormat)
def test_control_characters_are_escaped(
    rendered: Callable[[LogFormat], None], capsys: pytest.CaptureFixture[str], log_format: LogFormat, control: str
) -> None:
    rendered(log_format)
    text = f"before{control}{FORGED}"
    log.warning("refused %s", text, extra={"path": text, f"name{control}": 1, "many": [text]})
    try:
        fail(text)
    except ValueError:
        log.exception("failed")
    output = written(capsys)
    assert control == "\n" or control not in output
    assert "before" in output
    # A record begins in the first column; the lines of a traceback do not.
    records = [line for line in output.split("\n") if line and not line.startswith(" ")]
    assert len(records) == 2
    if log_format is LogFormat.JSON:
        first, second = map(json.loads, records)
        assert first["path"] == text
        assert second["exception"].endswith(f"ValueError: {text}")


@pytest.mark.parametrize("log_format", LogFormat)
def test_other_characters_are_written_as_they_are(
    rendered: Callable[[LogFormat], None], capsys: pytest.CaptureFixture[str], log_format: LogFormat
) -> None:
    rendered(log_format)
    log.warning("Über 您的订单 زیر‌ساخت 👩‍👩‍👧", extra={"text": "您的 订单"})
    output = written(capsys)
    assert "Über 您的订单 زیر‌ساخت 👩‍👩‍👧" in output
    assert "您的 订单" in output
