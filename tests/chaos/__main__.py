"""`python -m chaos`: run the chaos test, in full or for two minutes (`--short`); exit with 1 if a check fails."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from chaos.run import Plan, run_chaos


def main() -> None:
    """Run the test; keep its folder, so that the logs can be read afterwards."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="random seed for the order of faults (default: the time)"
    )
    parser.add_argument("--short", action="store_true", help="run for two minutes instead of fifteen")
    parser.add_argument("--smtp", action="store_true", help="send e-mail to a mail server, and inject faults into it")
    options = parser.parse_args()
    full = Plan(options.seed, notifications=51_000, faults=42, seconds=660, hold=4, outage=60, smtp=options.smtp)
    short = Plan(options.seed, notifications=5_000, faults=10, seconds=80, hold=2, outage=5, smtp=options.smtp)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = asyncio.run(run_chaos(folder, short if options.short else full))
    if report.lost or report.complaints:
        sys.exit(f"The logs and ledgers are in {folder}.")


if __name__ == "__main__":
    main()
