"""`make fuzz`: run Schemathesis against a gateway, guided by the gateway's OpenAPI document."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.processes import System, running_system

KEY = "the-key-of-the-fuzzing-run-which-is-no-secret"
SETTINGS = {
    "AUTH": "on", "BOOTSTRAP_API_KEY": KEY, "TELEGRAM_SLEEP": "0", "EMAIL_SLEEP": "0", "WEBHOOK_SLEEP": "0",
    "LOG_LEVEL": "WARNING",
}  # fmt: skip
# The gateway may reject requests that match the schema, because a schema cannot express every rule, for example that
# `expires_at` must be later than `send_at`.
EXCLUDED_CHECK = "positive_data_acceptance"


def fuzz(system: System, *, examples: int, seed: int, phases: str) -> int:
    """Run `examples` cases for each operation in each phase, and return the exit code of Schemathesis."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{system.addresses()['GATEWAY_URL']}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--exclude-checks", EXCLUDED_CHECK, "--phases", phases,
        "--max-examples", str(examples), "--seed", str(seed), "--warnings", "off", "--continue-on-failure",
        "--exclude-path", "/v1/events", "--exclude-path", "/api/events",  # these streams never end
        "--exclude-operation-id", "revoke_key",  # it could revoke the key of this run
    ]  # fmt: skip
    return subprocess.run(command, cwd=system.folder, check=False).returncode  # noqa: S603 - ours


def main() -> None:
    """Run about ten thousand cases."""
    parser = argparse.ArgumentParser(prog="python -m support.fuzzing", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="random seed (default: the time)")
    parser.add_argument("--examples", type=int, default=1500, help="cases per operation (default: %(default)s)")
    options = parser.parse_args()
    with running_system(Path(tempfile.mkdtemp(prefix="fuzz-")) / "stack", SETTINGS) as system:
        code = fuzz(system, examples=options.examples, seed=options.seed, phases="examples,coverage,fuzzing")
    sys.exit(code)


if __name__ == "__main__":
    main()
