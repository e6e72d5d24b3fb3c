"""A short version of `make chaos`."""

from pathlib import Path

import pytest
from chaos.run import Plan, run_chaos
from support.servers import in_containers

SEED = 17_145  # stops PostgreSQL, kills RabbitMQ, takes the mail server down and kills every gateway


@pytest.mark.timeout(300)
@pytest.mark.skipif(in_containers(), reason="requires the local stack's private servers")
async def test_nothing_is_lost_and_a_fault_explains_every_duplicate(tmp_path: Path) -> None:
    plan = Plan(seed=SEED, notifications=1200, faults=4, seconds=15, hold=1, outage=2, smtp=True)
    report = await run_chaos(tmp_path, plan)
    assert report.accepted > 1000
    assert report.deliveries["sent"] > 1500
    assert (report.lost, report.complaints) == (0, [])
