"""A short version of `make chaos`."""

from pathlib import Path

import pytest
from chaos.run import Plan, run_chaos
from support.servers import in_containers

SEED = 15_056  # PostgreSQL stopped, RabbitMQ killed, the mail server down, every gateway killed


@pytest.mark.timeout(300)
@pytest.mark.skipif(in_containers(), reason="needs the private servers of the local stack")
async def test_faults_lose_nothing_and_explain_every_duplicate(tmp_path: Path) -> None:
    plan = Plan(seed=SEED, notifications=1200, faults=4, seconds=15, hold=1, outage=2, smtp=True)
    report = await run_chaos(tmp_path, plan)
    assert report.accepted > 1000
    assert report.deliveries["sent"] > 1500
    assert (report.lost, report.complaints) == (0, [])
