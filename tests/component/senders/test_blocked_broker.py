"""A sender while RabbitMQ's memory alarm blocks publishers."""

import asyncio
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from support.alarms import listening_process, memory_alarm
from support.amqp import Hand
from support.fakes import FakeProvider
from support.servers import Servers, in_containers
from support.services import delivery_requested as request
from support.services import eventually, running_sender

QUEUE = "notifications.telegram"
DELAY = timedelta(seconds=6)  # longer than it takes to raise the alarm
RETRY_QUEUE = topology.retry_queue_name(Channel.TELEGRAM, DELAY)

pytestmark = pytest.mark.skipif(in_containers(), reason="requires the local stack's private servers")


class SlowFor:
    """A provider's behaviour: it responds at once, but to one delivery only when `go` is set."""

    def __init__(self, slow: UUID) -> None:
        self._slow = slow
        self.go = asyncio.Event()
        self.called = asyncio.Event()

    async def __call__(self, requested: DeliveryRequested) -> str:
        if requested.delivery_id == self._slow:
            self.called.set()
            await self.go.wait()
        return "sent"


async def test_messages_whose_results_are_confirmed_are_acked_although_publishing_is_blocked(
    rabbit: RabbitSettings, hand: Hand, servers: Servers, tmp_path: Path
) -> None:
    """Otherwise RabbitMQ redelivers them after its consumer timeout, and another sender sends them again."""
    known, slow = request(), request()
    answer = SlowFor(slow.delivery_id)
    provider = FakeProvider(answer)
    # The call lasts until the alarm is raised, which may take a while.
    async with running_sender(rabbit, provider, concurrency=2, first_delay=DELAY, provider_timeout=60):
        await hand.request(known)
        await hand.results(1)
        await hand.request(slow)
        await answer.called.wait()
        # Duplicates of a message whose result is confirmed need nothing but an ack. They arrive during the alarm.
        for _ in range(3):
            body = known.model_dump_json()
            await hand.publish(topology.retry_exchange(Channel.TELEGRAM).name, topology.retry_routing_key(DELAY), body)
        async with memory_alarm(listening_process(servers.rabbit.rabbitmq_port), tmp_path):
            answer.go.set()  # the result cannot be published now, and the attempt to do so blocks the connection

            async def all_are_acked() -> bool:
                # With one of two places occupied, the last duplicate leaves the queue only if the others are acked.
                return await hand.depth(RETRY_QUEUE) == 0 and await hand.depth(QUEUE) == 0

            await eventually(all_are_acked, "the duplicates are acked")
            assert len(provider.calls) == 2
        await hand.results(1)
