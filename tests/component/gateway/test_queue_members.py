"""The gateway counts the queues that would not survive the loss of a RabbitMQ node."""

import math

import pytest
from notify_common.rabbitmq.connection import RabbitSettings
from notify_gateway.console.queue_statistics import QueueStatisticsClient
from notify_gateway.queue_members import QueueMembers
from pydantic import HttpUrl
from support.servers import Servers
from support.services import eventually


@pytest.mark.usefixtures("hand")
async def test_queues_with_fewer_members_than_nodes_are_counted_and_logged(
    servers: Servers, rabbit: RabbitSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.management() as management:
        names = {queue["name"] for queue in management.get(f"/api/queues/{rabbit.rabbitmq_vhost}").json()}
    queues = QueueStatisticsClient(rabbit, [HttpUrl(servers.management_url)])
    observed: list[float] = []
    try:

        async def all_reported() -> bool:
            statistics = await queues.read()
            return statistics is not None and all(statistics[name].members for name in names)

        await eventually(all_reported, "RabbitMQ reports the members of all queues")
        await QueueMembers(queues, 1, observed.append).look()
        assert "fewer members" not in caplog.text
        await QueueMembers(queues, 3, observed.append).look()
        assert "queues have fewer members than RabbitMQ has nodes" in caplog.text
        assert observed == [0, len(names)]
    finally:
        await queues.aclose()


async def test_number_is_unknown_without_the_management_api(rabbit: RabbitSettings) -> None:
    queues, observed = QueueStatisticsClient(rabbit, []), list[float]()
    await QueueMembers(queues, 3, observed.append).look()
    assert math.isnan(observed[0])
