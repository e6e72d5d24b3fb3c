"""Read which deliveries RabbitMQ holds messages for. The messages stay in their queues."""

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
    DELIVERY_ID_HEADER,
    NOTIFICATION_ID_HEADER,
    ROUND_HEADER,
    DeliveryResult,
    ResultsEnvelope,
)
from notify_common.rabbitmq.connection import RabbitSettings, connect
from notify_common.rabbitmq.dead_letters import queue_where_it_died
from pydantic import HttpUrl, ValidationError

from notify_gateway.console.queue_statistics import QueueStatisticsClient

DELIVERY_QUEUES = [topology.delivery_queue_name(channel) for channel in Channel]
RETRY_QUEUE = re.compile(rf"(notifications\.(?:{'|'.join(Channel)}))\.retry\.[0-9]+")
RESULT_QUEUES = [binding.queue.name for binding in topology.all_results()]
ARCHIVES = {binding.queue.name for binding in topology.archives()}
INBOXES = [name for each in topology.all_dead_letters() if (name := each.queue.name) not in ARCHIVES]
# A message on its way from a retry queue to its channel's queue is in neither of them for a moment.
SETTLE_TIME = 1.0  # seconds
MAX_PREFETCH = 65_535  # the largest that AMQP allows
POLL_INTERVAL = 0.5  # seconds


class DeliveryRound(NamedTuple):
    """A round of a delivery, which a message belongs to."""

    delivery_id: UUID
    round: int


class StillConsuming(Exception):
    """A sender or status writer is running, so that RabbitMQ does not show all messages. The error names the queues."""


@dataclass
class BrokerContents:
    """The rounds that messages in RabbitMQ belong to."""

    requests: dict[DeliveryRound, str] = field(default_factory=dict)
    """Rounds with an attempt to come, and the ids of their notifications."""
    results: set[DeliveryRound] = field(default_factory=set)
    """Rounds with a result that is not in PostgreSQL yet."""
    ended: set[DeliveryRound] = field(default_factory=set)
    """Rounds that the status writers will end when they read these messages."""
    unreadable: int = 0

    def add_request(self, message: AbstractIncomingMessage) -> None:
        """Note a request for an attempt."""
        if (request := _round(message)) is None:
            self.unreadable += 1
        else:
            self.requests[request] = str(message.headers.get(NOTIFICATION_ID_HEADER, "-"))

    def add_results(self, message: AbstractIncomingMessage) -> None:
        """Note the results in a message."""
        try:
            items = ResultsEnvelope.from_body(message.body).results
        except ValueError:
            self.unreadable += 1
            return
        for item in items:
            try:
                result = DeliveryResult.model_validate(item)
            except ValidationError:
                self.unreadable += 1
                continue
            reported = DeliveryRound(result.delivery_id, result.round)
            self.results.add(reported)
            if result.outcome.status.final:
                self.ended.add(reported)

    def add_dead_letter(self, message: AbstractIncomingMessage) -> None:
        """Note a dead letter that the status writers have not read. A dead result ends no delivery."""
        if queue_where_it_died(message.headers) in DELIVERY_QUEUES and (dead := _round(message)) is not None:
            self.ended.add(dead)


def _round(message: AbstractIncomingMessage) -> DeliveryRound | None:
    number = message.headers.get(ROUND_HEADER, 1)
    if isinstance(number, int):
        with suppress(ValueError):
            return DeliveryRound(UUID(str(message.headers.get(DELIVERY_ID_HEADER))), number)
    return None


async def read_contents(settings: RabbitSettings, management_urls: Sequence[HttpUrl]) -> BrokerContents:
    """Take all messages from their queues, note what they are, and let them return.

    Raise `StillConsuming` if a service may hold some of them.
    """
    existing = await _existing_queues(settings, management_urls)
    read_last = [name for name in (*DELIVERY_QUEUES, *RESULT_QUEUES, *INBOXES) if name in existing]
    contents = BrokerContents()
    # All messages return when the connection closes. Until then, none is read twice, and none leaves its retry queue.
    async with await connect(settings, "operator") as connection:
        await _require_no_consumers(await connection.channel(), read_last)
        for name in existing:
            if RETRY_QUEUE.fullmatch(name):
                await _read(connection, name, contents.add_request)
        await asyncio.sleep(SETTLE_TIME)
        for names, note in (
            (DELIVERY_QUEUES, contents.add_request),
            (RESULT_QUEUES, contents.add_results),
            (INBOXES, contents.add_dead_letter),
        ):
            for name in names:
                if name in existing:
                    await _read(connection, name, note)
    return contents


async def _existing_queues(settings: RabbitSettings, management_urls: Sequence[HttpUrl]) -> Collection[str]:
    """Return the names of all queues. Retry queues of earlier values of `RETRY_DELAY` may still have messages."""
    client = QueueStatisticsClient(settings, management_urls)
    try:
        queues = await client.read()
    finally:
        await client.aclose()
    if queues is None:
        raise OSError("the management API (RABBITMQ_MANAGEMENT_URL) is unavailable")
    return queues.keys()


async def _require_no_consumers(channel: AbstractChannel, names: Iterable[str]) -> None:
    queues = [await channel.declare_queue(name, passive=True) for name in names]
    if consumed := [queue.name for queue in queues if queue.declaration_result.consumer_count]:
        raise StillConsuming(f"{', '.join(consumed)}: stop the senders and status writers first")


async def _read(connection: AbstractConnection, name: str, note: Callable[[AbstractIncomingMessage], None]) -> None:
    """Take the messages of a queue, and keep them until the connection closes."""
    received = 0

    async def receive(message: AbstractIncomingMessage) -> None:
        nonlocal received
        received += 1
        note(message)

    limit = before = 0
    while True:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, passive=True)
        if not queue.declaration_result.message_count and received == before:
            return
        before = received
        if received == limit:  # the channels so far can hold no more messages
            limit += MAX_PREFETCH
            await channel.set_qos(prefetch_count=MAX_PREFETCH)
            await queue.consume(receive)
        else:
            await channel.close()
        await asyncio.sleep(POLL_INTERVAL)
