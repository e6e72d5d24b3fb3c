"""Samples of the stacks of running Python processes, taken by py-spy."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.profile.stacks import Stacks, parse

PY_SPY = Path(sys.executable).with_name("py-spy")
TIMEOUT = 60.0  # seconds that py-spy may take besides the sampling


def sample(pids: Mapping[str, int], seconds: int, rate: int) -> dict[str, Stacks]:
    """Sample all these processes at the same time, `rate` times a second, without pausing them."""
    with TemporaryDirectory(prefix="bench-profile-") as name:
        files = {process: Path(name) / process for process in pids}
        spies = {process: _start(pids[process], seconds, rate, file) for process, file in files.items()}
        try:
            for process, spy in spies.items():
                _, errors = spy.communicate(timeout=seconds + TIMEOUT)
                if spy.returncode:
                    raise SystemExit(f"py-spy could not sample {process}; it may need to run as root.\n{errors}")
        finally:
            for spy in spies.values():
                spy.kill()
        return {process: parse(file.read_text()) for process, file in files.items()}


def _start(pid: int, seconds: int, rate: int, file: Path) -> "subprocess.Popen[str]":
    command = [
        str(PY_SPY), "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(rate), "--nonblocking",
        "--function", "--format", "raw", "--output", str(file),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
