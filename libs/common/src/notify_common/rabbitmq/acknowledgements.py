"""Ack and reject messages in batches. One multiple ack covers all messages up to the first unfinished one."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from aiormq import spec
from aiormq.channel import Channel

from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import broker_errors, run_unless_closed
from notify_common.runtime.batcher import Batcher

log = logging.getLogger(__name__)

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True)
class _Acknowledgement:
    """An ack or reject for one message."""

    channel: Channel
    tag: int
    ack: bool


@dataclass(slots=True)
class DeliveryTags:
    """A channel's acknowledged delivery tags: every tag up to `through`, and individual tags `beyond` it."""

    through: int = 0
    beyond: set[int] = field(default_factory=set)

    def acknowledge(self, acked: Sequence[int], rejected: Sequence[int]) -> list[spec.Basic.Ack | spec.Basic.Reject]:
        """Return the frames that ack and reject these tags, but no message that is still being handled."""
        self.beyond.update(acked, rejected)
        # RabbitMQ numbers a channel's messages from 1.
        while self.through + 1 in self.beyond:
            self.through += 1
            self.beyond.remove(self.through)
        # Rejects come first, so that an ack of multiple messages cannot include a rejected one.
        rejects = [spec.Basic.Reject(delivery_tag=tag, requeue=False) for tag in rejected]
        acks = [spec.Basic.Ack(delivery_tag=tag) for tag in acked if tag > self.through]
        without_gap = [tag for tag in acked if tag <= self.through]
        if without_gap:
            # A multiple ack must end at a tag that is not acked yet, because RabbitMQ rejects tags that it forgot.
            acks.append(spec.Basic.Ack(delivery_tag=max(without_gap), multiple=True))
        return [*rejects, *acks]


class Acknowledger:
    """Acks and rejects the messages of one consumer, which must have a channel to itself.

    Each call returns once its frame has been handed to the connection, or once its channel is lost. If the channel is
    lost, the broker redelivers the message.
    """

    def __init__(self) -> None:
        # A lost channel's tags are dropped with it, because its messages are redelivered on another channel.
        self._tags: WeakKeyDictionary[Channel, DeliveryTags] = WeakKeyDictionary()
        self._batcher = Batcher(self._write, max_batch=MAX_BATCH)

    async def ack(self, channel: Channel, tag: int) -> None:
        """Ack a message. All its effects must already be confirmed or committed."""
        await self._batcher.submit(_Acknowledgement(channel, tag, ack=True))

    async def reject(self, channel: Channel, tag: int) -> None:
        """Reject a message that can never be handled, so that RabbitMQ dead-letters it."""
        await self._batcher.submit(_Acknowledgement(channel, tag, ack=False))

    async def _write(self, batch: Sequence[_Acknowledgement]) -> list[None]:
        by_channel: defaultdict[Channel, list[_Acknowledgement]] = defaultdict(list)
        for each in batch:
            by_channel[each.channel].append(each)
        for channel, own in by_channel.items():
            acked, rejected = ([each.tag for each in own if each.ack is ack] for ack in (True, False))
            frames = self._tags.setdefault(channel, DeliveryTags()).acknowledge(acked, rejected)
            try:
                with broker_errors():
                    await run_unless_closed(channel, _send(channel, frames))
            except BrokerUnavailable as unavailable:
                log.debug(
                    "could not acknowledge messages; the broker will redeliver them",
                    extra={"count": len(own), "reason": str(unavailable)},
                )
        return [None for _ in batch]


async def _send(channel: Channel, frames: Sequence[spec.Basic.Ack | spec.Basic.Reject]) -> None:
    for frame in frames:
        tag = frame.delivery_tag or 0
        if isinstance(frame, spec.Basic.Ack):
            await channel.basic_ack(tag, multiple=frame.multiple, wait=False)
        else:
            await channel.basic_reject(tag, requeue=False, wait=False)
