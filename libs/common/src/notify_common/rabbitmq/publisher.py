"""Publish each batch of messages with one write, and report which of them the broker has confirmed.

See `docs/decisions/0008-one-write-per-group.md` for why messages are not published one by one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from aiormq import spec
from aiormq.channel import Channel
from aiormq.exceptions import ChannelPreconditionFailed, DeliveryError, PublishError
from faststream.rabbit import RabbitBroker, RabbitExchange

from notify_common.errors import BrokerUnavailable, NotWritten, PublishFailed, PublishImpossible, PublishRefused
from notify_common.rabbitmq.connection import (
    RECONNECT_INTERVAL,
    broker_errors,
    open_channel,
    open_transport,
    wait_unless_closed,
)
from notify_common.rabbitmq.queue_probe import QueueProbe
from notify_common.rabbitmq.raw_channel import PublishParts, forget_publishes, write_publishes

log = logging.getLogger(__name__)

PERSISTENT = 2  # AMQP 0-9-1, delivery-mode


Confirmations = Sequence["asyncio.Future[Any]"]
"""A future per message, which ends when RabbitMQ confirms the message, and fails if RabbitMQ refuses it."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A persistent JSON message to be published."""

    exchange: RabbitExchange
    routing_key: str
    body: bytes
    headers: Mapping[str, Any] = field(default_factory=dict)


class ConfirmedPublisher:
    """A publisher with its own channel, which it reopens whenever the broker's connection has been lost.

    `restore_topology` is called if the broker could not route a message or closed the channel, because a queue, a
    binding or an exchange may be missing.
    """

    def __init__(self, broker: RabbitBroker, restore_topology: Callable[[], Awaitable[None]] | None = None) -> None:
        self._broker = broker
        self._restore_topology = restore_topology
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._probe = QueueProbe()

    async def publish(
        self,
        messages: Sequence[OutgoingMessage],
        *,
        may_write: Callable[[], bool] = lambda: True,
        on_written: Callable[[Confirmations], object] = lambda _: None,
    ) -> list[PublishFailed | None]:
        """Publish the messages; return for each of them None if the broker confirmed it, or else the failure.

        There is no timeout: during a memory alarm the broker accepts messages late, and publishing a second copy in the
        meantime would notify the user twice. The heartbeat detects dead connections.

        By default, the options do nothing. `may_write` is for messages that must not be written late: it is called
        directly before they are written together, which may be long after this call, because a channel may have to be
        opened first. If it returns False, none is written. `on_written` is for callers that do not wait for all
        confirms: it is called with the confirmations once the messages are written.
        """
        publishes = [_publish_parts(message) for message in messages]
        try:
            with broker_errors():
                channel = await self._open_channel()
                confirmations = await write_publishes(
                    channel, publishes, may_write=may_write, abandon=partial(self._abandon, channel)
                )
        except BrokerUnavailable as unavailable:
            return [PublishFailed(str(unavailable))] * len(messages)
        except NotWritten as not_written:
            return [not_written] * len(messages)
        on_written(confirmations)
        try:
            # After the channel has closed, no further confirm can arrive.
            await wait_unless_closed(channel, asyncio.gather(*confirmations, return_exceptions=True))
        finally:
            forget_publishes(channel, publishes)
        if self._restore_topology is not None and _topology_may_be_incomplete(channel, confirmations):
            await self._restore_topology()
        return [_failure(channel, confirmation) for confirmation in confirmations]

    async def publish_until_confirmed(
        self, messages: Sequence[OutgoingMessage], *, raise_if_impossible: bool = False
    ) -> None:
        """Publish until the broker has confirmed every message, however long an outage lasts.

        With `raise_if_impossible`, raise `PublishImpossible` if the broker may not accept such messages.
        """
        while True:
            failures = await self.publish(messages)
            impossible = next((failure for failure in failures if isinstance(failure, PublishImpossible)), None)
            if raise_if_impossible and impossible is not None:
                raise impossible
            messages = [message for message, failure in zip(messages, failures, strict=True) if failure is not None]
            if not messages:
                return
            log.debug("messages were not confirmed; retrying", extra={"count": len(messages), "reason": str(failures)})
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def responds(self, timeout: float) -> bool:
        """Return whether RabbitMQ responds within `timeout` seconds. If so, it has read everything written before.

        During a memory alarm, RabbitMQ does not respond, because it reads nothing from a connection that publishes.
        """
        try:
            with broker_errors():
                await self._probe.ask(open_transport(await self._broker.connect()), timeout)
        except BrokerUnavailable:
            return False
        return True

    def _abandon(self, channel: Channel) -> None:
        if self._channel is channel:
            self._channel = None

    async def _open_channel(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await open_channel(self._broker, publisher_confirms=True)
            return self._channel


def _publish_parts(message: OutgoingMessage) -> PublishParts:
    properties = spec.Basic.Properties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        headers=dict(message.headers),
        message_id=str(uuid4()),
    )
    publish = spec.Basic.Publish(exchange=message.exchange.name, routing_key=message.routing_key, mandatory=True)
    return publish, properties, message.body


def _topology_may_be_incomplete(channel: Channel, confirmations: Confirmations) -> bool:
    """Return whether a message was unroutable, or the broker closed the channel because an exchange is missing."""
    if channel.is_closed:
        return not channel.connection.is_closed
    return any(isinstance(confirmation.exception(), PublishError) for confirmation in confirmations)


def _failure(channel: Channel, confirmation: "asyncio.Future[Any]") -> PublishFailed | None:
    if not confirmation.done():
        confirmation.cancel()
        if channel.is_closed and isinstance(reason := _reason_of_close(channel), ChannelPreconditionFailed):
            return PublishImpossible(str(reason))
        return PublishFailed("the channel closed before the confirm arrived")
    error = confirmation.exception()
    if error is None:
        return None
    # Any other error means that the connection was lost; a lost channel's confirms get no exception at all.
    return PublishRefused(repr(error)) if isinstance(error, DeliveryError) else PublishFailed(repr(error))


def _reason_of_close(channel: Channel) -> BaseException | None:
    closing = channel.closing
    return None if closing.cancelled() else closing.exception()
