"""The runs in a cluster: in full, short, and the negative controls, which must find losses."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from notify_local.console import say
from support.cluster.databases import ASYNCHRONOUS

from chaos.ha.faults import AHEAD, EMPTY_BROKER, SHORT, full_series
from chaos.ha.run import HaPlan, run_ha

RATE = 32.0  # notifications a second
FULL = HaPlan(full_series(), notifications=30_000, rate=RATE)
# A node that is silent for so long counts as down.
SHORT_PLAN = HaPlan(SHORT, notifications=5_000, rate=20, hold=4, silence=24)
# What they lose stays in flight forever.
CONTROL = HaPlan([], notifications=400, rate=20, hold=2, patience=30)
CONTROLS = {
    "queues": replace(CONTROL, faults=[EMPTY_BROKER], one_member=True),
    "standby": replace(CONTROL, faults=[AHEAD], replication=ASYNCHRONOUS),
}


def run_cluster(folder: Path, *, short: bool, control: str | None, only: Sequence[str]) -> bool:
    """Run one of the plans; return True if nothing was lost, or if a control has found a loss."""
    if control is not None:
        report = asyncio.run(run_ha(folder, CONTROLS[control]))
        found = bool(report.lost or report.stranded)
        say("The control found losses, as it must." if found else "The control found no loss!")
        return found
    plan = SHORT_PLAN if short else FULL
    if only:
        plan = replace(plan, faults=only, notifications=0)
    return asyncio.run(run_ha(folder, plan)).clean
