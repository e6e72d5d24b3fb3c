"""Ask RabbitMQ how many messages and consumers queues have."""

import asyncio
from collections.abc import Sequence

from aiormq import spec
from aiormq.abc import AbstractConnection

from notify_common.rabbitmq.connection import broker_errors


class QueueProbe:
    """Asks RabbitMQ about `queues`, one question at a time.

    RabbitMQ does not answer on a frozen or blocked connection. If a question is given up, its channel keeps its number
    until RabbitMQ answers, and too many channels end the connection. A question is therefore never given up: callers
    that come while it is open wait for the same answer.
    """

    def __init__(self, *queues: str) -> None:
        self._queues = queues
        self._connection: AbstractConnection | None = None
        self._question: asyncio.Task[Sequence[spec.Queue.DeclareOk]] | None = None

    async def ask(self, connection: AbstractConnection, timeout: float) -> Sequence[spec.Queue.DeclareOk]:
        """Return RabbitMQ's answers; raise `BrokerUnavailable` if they do not arrive within `timeout` seconds."""
        if self._question is None or self._question.done() or self._connection is not connection:
            self._connection, self._question = connection, asyncio.create_task(self._ask(connection))
            self._question.add_done_callback(_retrieve_error)
        with broker_errors():
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._question)

    async def _ask(self, connection: AbstractConnection) -> Sequence[spec.Queue.DeclareOk]:
        # The channel is a separate one, because RabbitMQ closes it if a queue does not exist.
        channel = await connection.channel(publisher_confirms=False)
        answers = [await channel.queue_declare(queue, passive=True) for queue in self._queues]
        await channel.close()
        return answers


def _retrieve_error(question: "asyncio.Task[Sequence[spec.Queue.DeclareOk]]") -> None:
    """Keep asyncio from logging the error of a question whose callers have all timed out."""
    if not question.cancelled():
        question.exception()
