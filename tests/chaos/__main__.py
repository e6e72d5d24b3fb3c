"""`python -m chaos`: run the chaos test, in full or for three minutes (`--short`); exit with 1 if a check fails."""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from chaos.faults import fault_names
from chaos.ha.cost import compare_cost
from chaos.ha.faults import FAULTS
from chaos.ha.plans import CONTROLS, run_cluster
from chaos.pacing import check_pacing
from chaos.run import Plan, run_chaos

TIMES = 3  # how often a full run injects each of the faults in `--only`; a short run does so once


def main() -> None:
    """Run the test; keep its folder, so that the logs can be read afterwards."""
    names = fault_names(smtp=True, pauses=True)
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="random seed for the order of faults (default: the time)"
    )
    parser.add_argument("--short", action="store_true", help="run for three minutes instead of twenty")
    parser.add_argument("--smtp", action="store_true", help="send e-mail to a mail server, and inject faults into it")
    parser.add_argument("--pacing", action="store_true", help="only check that e-mails are sent at the configured rate")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=[*names, *FAULTS],
        metavar="FAULT",
        help=f"inject only these: {'; '.join(names)}; with --ha: {'; '.join(FAULTS)}",
    )
    parser.add_argument("--ha", action="store_true", help="fail nodes of a RabbitMQ and a PostgreSQL cluster")
    parser.add_argument(
        "--control", choices=CONTROLS, help="with --ha: weaken the cluster, so that the run must find losses"
    )
    parser.add_argument(
        "--cost", action="store_true", help="with --ha: only compare the CPU of three nodes with that of one"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    if options.ha and options.cost:
        asyncio.run(compare_cost(folder))
        return
    if options.ha:
        passed = run_cluster(folder, short=options.short, control=options.control, only=options.only)
        sys.exit(None if passed else f"The logs and ledgers are in {folder}.")
    passed = True
    if options.pacing or not (options.short or options.only):
        passed = asyncio.run(check_pacing(folder))
    if not options.pacing:
        report = asyncio.run(run_chaos(folder, _plan(options)))
        passed = passed and report.clean
    if not passed:
        sys.exit(f"The logs and ledgers are in {folder}.")


def _plan(options: argparse.Namespace) -> Plan:
    """Return the plan for the options on the command line."""
    full = Plan(options.seed, notifications=51_000, faults=42, seconds=720, hold=4, outage=45, large=3000, pauses=True)
    short = Plan(options.seed, notifications=5_000, faults=10, seconds=90, hold=2, outage=5)
    plan = replace(short if options.short else full, smtp=options.smtp, only=tuple(options.only))
    return replace(plan, faults=len(plan.only) * (1 if options.short else TIMES)) if plan.only else plan


if __name__ == "__main__":
    main()
