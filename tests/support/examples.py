"""Run the examples in the documentation as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.servers import PROJECT
from support.services import TIMEOUT


def python_examples(document: str) -> list[str]:
    """Return the blocks of Python in a document."""
    return re.findall(r"^```python\n(.*?)^```", (PROJECT / document).read_text(), re.MULTILINE | re.DOTALL)


def run(example: str, url: str, folder: Path) -> str:
    """Run an example against the gateway at `url`; return what it prints."""
    environment = {**os.environ, "NOTIFY_URL": url, "PYTHONWARNINGS": "error"}
    result = subprocess.run(  # noqa: S603 - our documentation
        [sys.executable, "-c", example],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout
