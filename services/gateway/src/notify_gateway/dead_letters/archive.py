"""Read and requeue dead letters, which are archived in `notifications.dead` and `notifications.dead.<channel>`."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelPreconditionFailed
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DELIVERY_ID_HEADER
from notify_common.errors import PublishImpossible
from notify_common.rabbitmq.connection import RabbitSettings, connect
from notify_common.rabbitmq.dead_letters import DEATHS_HEADER, REASON_HEADER, original_headers, queue_where_it_died
from notify_common.runtime.logging import escape_controls

# The shared archive, and then each channel's, with the only channel whose dead letters it can have.
ARCHIVES = {binding.queue.name: topology.channel_of(binding.queue.name) for binding in topology.archives()}
RESULTS_QUEUES = frozenset(binding.queue.name for binding in topology.all_results())
# Maps each queue to the exchange and routing key that return a message to it.
ORIGINS = {
    binding.queue.name: (binding.exchange.name, binding.routing_key)
    for binding in (*topology.all_results(), *map(topology.deliveries, Channel))
}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in the archive. Unless it is acknowledged, it returns to the archive on disconnect."""

    message: AbstractIncomingMessage
    archive: str

    @property
    def id(self) -> str:
        """The message id as it is shown, or `-` if the message has none."""
        return escape_controls(self.message.message_id or "-")

    @property
    def reason(self) -> str:
        """The reason that our services gave or, if they gave none, RabbitMQ's reason."""
        deaths: object = self.message.headers.get(DEATHS_HEADER)
        last = deaths[0] if isinstance(deaths, list) and deaths else None
        by_broker = last.get("reason") if isinstance(last, Mapping) else "unknown"
        return str(self.message.headers.get(REASON_HEADER, by_broker))

    @property
    def origin(self) -> str | None:
        """The queue in which the message died; None if that is unknown, or not a queue of the archive's channel."""
        queue, owner = queue_where_it_died(self.message.headers), ARCHIVES[self.archive]
        return queue if queue in ORIGINS and owner in {None, topology.channel_of(queue)} else None

    @property
    def channel(self) -> Channel | None:
        """The channel whose senders can have written this message; None if several can have."""
        return None if self.origin is None else topology.channel_of(self.origin)

    @property
    def delivery_id(self) -> UUID | None:
        """The id of the requested delivery; None if the message is a result or has no valid delivery id."""
        if self.origin is None or self.origin in RESULTS_QUEUES:
            return None
        try:
            return UUID(str(self.message.headers.get(DELIVERY_ID_HEADER)))
        except ValueError:
            return None


class DeadLetterArchive:
    """The archives of dead letters. Messages that are neither requeued nor dropped return to them on disconnect."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel

    async def letters(self) -> AsyncIterator[DeadLetter]:
        """Yield each message once: one archive after the other, and the oldest of each first."""
        # Read only the messages that are there now, because a requeued one may be dead-lettered again at once.
        queues = [await self._channel.get_queue(name) for name in ARCHIVES]
        for queue in queues:
            for _ in range(queue.declaration_result.message_count or 0):
                message = await queue.get(fail=False)
                if message is None:
                    break
                yield DeadLetter(message, queue.name)

    async def requeue(self, letter: DeadLetter) -> bool:
        """Move a message back to its original queue; return False if that queue is unknown.

        Raise `PublishImpossible` if RabbitMQ does not accept the message any more, because it now has a lower limit.
        """
        if letter.origin is None:
            return False
        exchange_name, routing_key = ORIGINS[letter.origin]
        copy = aio_pika.Message(
            letter.message.body,
            headers=original_headers(letter.message.headers),
            content_type=letter.message.content_type,
            message_id=letter.message.message_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            # RabbitMQ closes the channel on which it does not accept a message.
            async with self._connection.channel(on_return_raises=True) as channel:
                await (await channel.get_exchange(exchange_name, ensure=False)).publish(copy, routing_key)
        except ChannelPreconditionFailed as error:
            raise PublishImpossible(str(error)) from error
        await letter.message.ack()
        return True


@asynccontextmanager
async def open_archive(settings: RabbitSettings) -> AsyncIterator[DeadLetterArchive]:
    """Keep a connection to the archives open until the context ends."""
    async with await connect(settings, "operator") as connection:
        yield DeadLetterArchive(connection, await connection.channel())
