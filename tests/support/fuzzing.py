"""schemathesis against a running gateway, from the gateway's own OpenAPI document: `make fuzz`."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.processes import System, running_system

KEY = "a-key-of-the-fuzzing-run"
SETTINGS = {
    "AUTH": "on", "BOOTSTRAP_API_KEY": KEY, "TELEGRAM_SLEEP": "0", "EMAIL_SLEEP": "0", "WEBHOOK_SLEEP": "0",
    "LOG_LEVEL": "WARNING",
}  # fmt: skip
# Some rules hold between fields (a channel once, expiry after the start): a schema can not say them.
LEFT_OUT = "positive_data_acceptance"


def fuzz(system: System, *, examples: int, seed: int, phases: str) -> int:
    """Let `examples` cases for each operation run in each phase; the exit code of schemathesis."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{system.addresses()['GATEWAY_URL']}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--exclude-checks", LEFT_OUT, "--phases", phases,
        "--max-examples", str(examples), "--seed", str(seed), "--warnings", "off", "--continue-on-failure",
        "--exclude-path", "/api/events",  # which has no end
    ]  # fmt: skip
    return subprocess.run(command, cwd=system.folder, check=False).returncode  # noqa: S603 - ours


def main() -> None:
    """Ten thousand cases, about."""
    parser = argparse.ArgumentParser(prog="python -m support.fuzzing", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="(default: the time)")
    parser.add_argument("--examples", type=int, default=1500, help="for each operation (default: %(default)s)")
    options = parser.parse_args()
    with running_system(Path(tempfile.mkdtemp(prefix="fuzz-")) / "stack", SETTINGS) as system:
        code = fuzz(system, examples=options.examples, seed=options.seed, phases="examples,coverage,fuzzing")
    sys.exit(code)


if __name__ == "__main__":
    main()
