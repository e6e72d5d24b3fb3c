"""Publishes groups of messages, each group with one write, and tells which of them the broker has confirmed.

Why not one publish after the other: `docs/decisions/0008-one-write-per-group.md`.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiormq import spec
from aiormq.abc import ChannelFrame, FrameType
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker, RabbitExchange
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from notify_common.errors import BrokerUnavailable, PublishFailed
from notify_common.rabbitmq.connection import RECONNECT_INTERVAL, broker_errors
from notify_common.rabbitmq.raw_channel import open_channel, wait_unless_closed, write

log = logging.getLogger(__name__)

PERSISTENT = 2  # AMQP 0-9-1, delivery-mode


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A persistent JSON message to be published."""

    exchange: RabbitExchange
    routing_key: str
    body: bytes
    headers: Mapping[str, Any] = field(default_factory=dict)


class ConfirmedPublisher:
    """Publishes on a channel of its own, which is opened anew after each loss of the broker's connection."""

    def __init__(self, broker: RabbitBroker) -> None:
        self._broker = broker
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()

    async def publish(self, messages: Sequence[OutgoingMessage]) -> list[PublishFailed | None]:
        """Return when the fate of each is known: None where the broker has it.

        There is no timeout: under a memory alarm the broker takes messages late, and a second copy published meanwhile
        would be sent twice. A connection that is gone is noticed by its heartbeat.
        """
        ids = [str(uuid4()) for _ in messages]
        try:
            with broker_errors():
                channel = await self._open_channel()
                confirmations = await self._write(channel, messages, ids)
        except BrokerUnavailable as away:
            failure = PublishFailed(str(away))
            return [failure for _ in messages]
        try:
            # What is not confirmed by the channel's end never will be.
            await wait_unless_closed(channel, asyncio.gather(*confirmations, return_exceptions=True))
        finally:
            for message_id in ids:
                channel.message_id_delivery_tag.pop(message_id, None)
        return [_failure(confirmation) for confirmation in confirmations]

    async def publish_until_confirmed(self, messages: Sequence[OutgoingMessage]) -> None:
        """Publish again and again what the broker does not have, for as long as it is away."""
        while True:
            failures = await self.publish(messages)
            messages = [message for message, failure in zip(messages, failures, strict=True) if failure is not None]
            if not messages:
                return
            log.debug("not confirmed; trying again", extra={"count": len(messages), "reason": str(failures)})
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _open_channel(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await open_channel(self._broker, publisher_confirms=True)
            return self._channel

    async def _write(
        self, channel: Channel, messages: Sequence[OutgoingMessage], ids: Sequence[str]
    ) -> list[asyncio.Future[Any]]:
        """Write all with one call; their confirmations, which fail where a message is refused or returned."""
        frames: list[FrameType | ContentBody] = []
        for message, message_id in zip(messages, ids, strict=True):
            frames += _frames(message, message_id, channel.max_content_size)
        payload = ChannelFrame.marshall(channel.number, frames)
        loop = asyncio.get_running_loop()
        async with channel.lock:
            # RabbitMQ counts what is published on a channel; a number belongs to each message from here on.
            first = channel.delivery_tag + 1
            confirmations = {first + number: loop.create_future() for number in range(len(messages))}
            channel.delivery_tag += len(messages)
            channel.confirmations.update(confirmations)
            channel.message_id_delivery_tag.update(zip(ids, confirmations, strict=True))
            try:
                await write(channel, payload)
            except BaseException:
                # Whether it was written may not be known, and then neither is what the next confirm counts.
                self._channel = None
                raise
        return list(confirmations.values())


def _frames(message: OutgoingMessage, message_id: str, content_size: int) -> list[FrameType | ContentBody]:
    properties = spec.Basic.Properties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        headers=dict(message.headers),
        message_id=message_id,
    )
    body = message.body
    size = content_size if content_size > 0 else len(body) or 1  # 0 and less: no limit was agreed on
    parts = [ContentBody(body[at : at + size]) for at in range(0, len(body), size)]
    publish = spec.Basic.Publish(exchange=message.exchange.name, routing_key=message.routing_key, mandatory=True)
    return [publish, ContentHeader(properties=properties, body_size=len(body)), *parts]


def _failure(confirmation: "asyncio.Future[Any]") -> PublishFailed | None:
    if not confirmation.done():
        confirmation.cancel()
        return PublishFailed("the channel was closed before the confirm")
    error = confirmation.exception()
    return None if error is None else PublishFailed(repr(error))
