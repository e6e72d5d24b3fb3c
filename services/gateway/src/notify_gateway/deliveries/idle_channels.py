"""Find the channels that have nothing waiting in RabbitMQ, as RabbitMQ reports it now."""

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
    """Asks RabbitMQ on the connection that `connection` returns, which is None while there is none."""

    def __init__(self, connection: Callable[[], AbstractConnection | None]) -> None:
        self._connection = connection
        self._probes = {
            channel: QueueProbe(topology.delivery_queue_name(channel), topology.results(channel).queue.name)
            for channel in Channel
        }

    async def __call__(self) -> list[Channel]:
        """Return the channels whose queues of deliveries and of results are empty and have consumers.

        A channel for which RabbitMQ does not answer, or one of whose queues does not exist, is not idle.
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
