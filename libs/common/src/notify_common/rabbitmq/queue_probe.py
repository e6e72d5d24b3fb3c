"""Query RabbitMQ for the number of messages and consumers of queues."""

import asyncio
from collections.abc import Sequence

from aiormq import spec
from aiormq.abc import AbstractConnection

from notify_common.rabbitmq.connection import broker_errors


class QueueProbe:
    """Queries RabbitMQ about `queues`, one query at a time.

    RabbitMQ does not respond on a frozen or blocked connection. If a query were abandoned, its channel would keep its
    number until RabbitMQ responds, and too many channels end the connection. A query is therefore never abandoned:
    callers that arrive while it is running wait for the same response.
    """

    def __init__(self, *queues: str) -> None:
        self._queues = queues
        self._connection: AbstractConnection | None = None
        self._query: asyncio.Task[Sequence[spec.Queue.DeclareOk]] | None = None

    async def ask(self, connection: AbstractConnection, timeout: float) -> Sequence[spec.Queue.DeclareOk]:
        """Return one response per queue; raise `BrokerUnavailable` if they take longer than `timeout` seconds."""
        if self._query is None or self._query.done() or self._connection is not connection:
            self._connection, self._query = connection, asyncio.create_task(self._declare_passively(connection))
            self._query.add_done_callback(_retrieve_error)
        with broker_errors():
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._query)

    async def _declare_passively(self, connection: AbstractConnection) -> Sequence[spec.Queue.DeclareOk]:
        # The channel is a separate one, because RabbitMQ closes it if a queue does not exist.
        channel = await connection.channel(publisher_confirms=False)
        declared = [await channel.queue_declare(queue, passive=True) for queue in self._queues]
        await channel.close()
        return declared


def _retrieve_error(query: "asyncio.Task[Sequence[spec.Queue.DeclareOk]]") -> None:
    """Keep asyncio from logging the error of a query whose callers have all timed out."""
    if not query.cancelled():
        query.exception()
