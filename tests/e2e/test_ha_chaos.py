"""A shorter form of `make chaos ARGS="--ha --short"`."""

from pathlib import Path

import pytest
from chaos.ha.faults import PRIMARY_KILLED
from chaos.ha.run import HaPlan, run_ha
from notify_local.console import CannotRun
from support.servers import in_containers


@pytest.mark.timeout(300)
@pytest.mark.skipif(in_containers(), reason="requires private servers")
async def test_nothing_is_lost_when_nodes_of_a_cluster_are_killed(tmp_path: Path) -> None:
    plan = HaPlan(["kill -9 a broker", PRIMARY_KILLED], notifications=300, rate=12, hold=2)
    try:
        report = await run_ha(tmp_path, plan)
    except CannotRun as missing:
        pytest.skip(str(missing))  # etcd can be had only where apt-get is
    assert report.accepted >= 300
    assert report.deliveries["sent"] > 500
    assert (report.lost, report.complaints) == (0, [])
