"""Health checks and scrapes while RabbitMQ does not answer."""

import pytest
from aiormq import Connection
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.subscription import Subscription
from support.fakes import CuttableNetwork, FakeProvider
from support.services import eventually, running_sender

CHECKS = 20


def channels(subscribed: Subscription) -> int:
    """Return how many channel numbers the consumer's connection has given out."""
    assert isinstance(subscribed.connection, Connection)
    return len(subscribed.connection.channels)


async def test_checks_of_a_frozen_connection_use_up_no_channel_numbers(
    rabbit: RabbitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ closes a connection that opens more than 2047 channels, and redelivers everything in flight."""
    async with CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network:
        through_network = rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port})
        async with running_sender(through_network, FakeProvider()) as sender:
            [subscribed] = sender.subscriptions

            async def is_ready() -> bool:
                return await subscribed.problem() is None

            await eventually(is_ready, "the sender is consuming")
            assert sender.before_scrape is not None
            await sender.before_scrape()
            in_use = channels(subscribed)
            monkeypatch.setattr("notify_common.rabbitmq.subscription.CHECK_TIMEOUT", 0.02)
            monkeypatch.setattr("notify_common.sending.retry_queue_depth.TIMEOUT", 0.02)
            network.freeze()
            for _ in range(CHECKS):
                assert "does not answer" in (await subscribed.problem() or "")
                await sender.before_scrape()
            assert channels(subscribed) <= in_use + 2  # one for the health check, and one for the scrape
            monkeypatch.undo()
            await network.thaw()
            await eventually(is_ready, "the sender is consuming again")
            assert channels(subscribed) == in_use
