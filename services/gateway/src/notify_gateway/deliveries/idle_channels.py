"""Find the channels for which nothing waits in RabbitMQ now."""

import asyncio
from collections.abc import Callable

from aio_pika.abc import AbstractConnection
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import broker_errors, open_transport
from notify_common.rabbitmq.queue_probe import QueueProbe

TIMEOUT = 2.0  # seconds


class IdleChannels:
    """Queries RabbitMQ on the connection that `connection` returns, or finds no channel idle if that is None."""

    def __init__(self, connection: Callable[[], AbstractConnection | None]) -> None:
        self._connection = connection
        self._probes = {
            channel: QueueProbe(topology.delivery_queue_name(channel), topology.results(channel).queue.name)
            for channel in Channel
        }

    async def __call__(self) -> list[Channel]:
        """Return the channels whose queues of deliveries and of results are empty and have consumers.

        A channel is not idle if RabbitMQ does not respond, or if one of its queues does not exist.
        """
        connection = self._connection()
        if connection is None:
            return []
        idle = await asyncio.gather(*(_is_idle(probe, connection) for probe in self._probes.values()))
        return [channel for channel, is_idle in zip(self._probes, idle, strict=True) if is_idle]


async def _is_idle(probe: QueueProbe, connection: AbstractConnection) -> bool:
    try:
        with broker_errors():
            transport = open_transport(connection)
        queues = await probe.ask(transport, TIMEOUT)
    except BrokerUnavailable:
        return False
    return all(queue.message_count == 0 and queue.consumer_count for queue in queues)
