"""An operator's look at `notifications.dead`: what died, why, and what shall become of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from notify_common import topology
from notify_common.channels import Channel
from notify_common.dead_letters import DEATHS_HEADER, REASON_HEADER, original_headers, queues_of_death
from notify_common.messages import DELIVERY_ID_HEADER
from notify_common.rabbitmq import RabbitSettings

ARCHIVE = topology.dead_letters()[0].queue.name
# Where a message goes that is put back, by the queue in which it died.
HOMES = {
    binding.queue.name: (binding.exchange.name, binding.routing_key)
    for binding in (topology.results(), *map(topology.deliveries, Channel))
}
RESULTS = topology.results().queue.name


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of the archive, held until the archive is left."""

    message: AbstractIncomingMessage

    @property
    def id(self) -> str:
        """Its message id; `-` where it has none."""
        return self.message.message_id or "-"

    @property
    def reason(self) -> str:
        """Why it died; what RabbitMQ says where nobody else has."""
        deaths: object = self.message.headers.get(DEATHS_HEADER)
        by_broker = deaths[0].get("reason") if isinstance(deaths, list) and deaths else "unknown"
        return str(self.message.headers.get(REASON_HEADER, by_broker))

    @property
    def home(self) -> str | None:
        """The queue in which it died."""
        return next(iter(sorted(queues_of_death(self.message.headers) & HOMES.keys())), None)

    @property
    def delivery_id(self) -> UUID | None:
        """The delivery that this message wanted to be attempted; None where it was a result, or does not say."""
        if self.home is None or self.home == RESULTS:
            return None
        try:
            return UUID(str(self.message.headers.get(DELIVERY_ID_HEADER)))
        except ValueError:
            return None


class DeadArchive:
    """The messages of the archive; those that are not put back or dropped are back in it in the end."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel

    async def letters(self) -> AsyncIterator[DeadLetter]:
        """Each message once, the oldest first."""
        queue = await self._channel.get_queue(ARCHIVE)
        # Those that are there now: what is put back may die again at once.
        for _ in range(queue.declaration_result.message_count or 0):
            message = await queue.get(fail=False)
            if message is None:
                return
            yield DeadLetter(message)

    async def requeue(self, letter: DeadLetter) -> bool:
        """Put it back where it died; say whether that is known. It leaves the archive once it is confirmed there."""
        if letter.home is None:
            return False
        exchange_name, routing_key = HOMES[letter.home]
        exchange = await self._channel.get_exchange(exchange_name, ensure=False)
        again = aio_pika.Message(
            letter.message.body,
            headers=original_headers(letter.message.headers),
            content_type=letter.message.content_type,
            message_id=letter.message.message_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(again, routing_key)
        await letter.message.ack()
        return True

    async def drop(self, letter: DeadLetter) -> None:
        """Forget it."""
        await letter.message.ack()


@asynccontextmanager
async def dead_archive(settings: RabbitSettings) -> AsyncIterator[DeadArchive]:
    """The archive, for as long as the context lasts."""
    async with await aio_pika.connect(settings.amqp_url("operator")) as connection:
        yield DeadArchive(await connection.channel(on_return_raises=True))
