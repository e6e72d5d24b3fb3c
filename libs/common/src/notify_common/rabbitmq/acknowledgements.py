"""Ack and reject in batches: one write for all messages of a batch, one multiple ack for those that leave no gap."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from aiormq import spec
from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.channel import Channel

from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import broker_errors
from notify_common.rabbitmq.raw_channel import write
from notify_common.runtime.batcher import Batcher

log = logging.getLogger(__name__)

MESSAGES_PER_WRITE = 1000


@dataclass(frozen=True, slots=True)
class _Acknowledgement:
    """An ack or a reject of one message."""

    channel: AbstractChannel
    tag: int
    ack: bool


@dataclass(slots=True)
class DeliveryTags:
    """The delivery tags of a channel that are acknowledged: all up to `through`, and some `beyond` it."""

    through: int = 0
    beyond: set[int] = field(default_factory=set)

    def acknowledge(self, acked: Sequence[int], rejected: Sequence[int]) -> list[spec.Basic.Ack | spec.Basic.Reject]:
        """Return the frames that ack and reject these tags, and no tag that is still being handled."""
        self.beyond.update(acked, rejected)
        # RabbitMQ numbers the messages of a channel from 1.
        while self.through + 1 in self.beyond:
            self.through += 1
            self.beyond.remove(self.through)
        # Rejects come first: an ack of multiple messages must not include one that is to be rejected.
        rejects = [spec.Basic.Reject(delivery_tag=tag, requeue=False) for tag in rejected]
        acks = [spec.Basic.Ack(delivery_tag=tag) for tag in acked if tag > self.through]
        without_gap = [tag for tag in acked if tag <= self.through]
        if without_gap:
            # The last tag of a multiple ack must not be acknowledged yet: RabbitMQ would not know it.
            acks.append(spec.Basic.Ack(delivery_tag=max(without_gap), multiple=True))
        return [*rejects, *acks]


class Acknowledger:
    """Acks and rejects the messages of one consumer, which must have a channel to itself.

    Each call returns when its frame is written, or its channel is lost: the broker then delivers the message again.
    """

    def __init__(self) -> None:
        # The tags of a lost channel are dropped with it: its messages are delivered again, on another channel.
        self._tags: WeakKeyDictionary[AbstractChannel, DeliveryTags] = WeakKeyDictionary()
        self._batcher = Batcher(self._write, max_batch=MESSAGES_PER_WRITE)

    async def ack(self, channel: AbstractChannel, tag: int) -> None:
        """Ack a message, once everything that follows from it is confirmed or committed."""
        await self._batcher.submit(_Acknowledgement(channel, tag, ack=True))

    async def reject(self, channel: AbstractChannel, tag: int) -> None:
        """Let RabbitMQ dead-letter a message that can never be handled."""
        await self._batcher.submit(_Acknowledgement(channel, tag, ack=False))

    async def _write(self, batch: Sequence[_Acknowledgement]) -> list[None]:
        by_channel: defaultdict[AbstractChannel, list[_Acknowledgement]] = defaultdict(list)
        for each in batch:
            by_channel[each.channel].append(each)
        for channel, own in by_channel.items():
            acked, rejected = ([each.tag for each in own if each.ack is ack] for ack in (True, False))
            frames = self._tags.setdefault(channel, DeliveryTags()).acknowledge(acked, rejected)
            try:
                with broker_errors():
                    await _write_and_drain(channel, frames)
            except BrokerUnavailable as unavailable:
                log.debug(
                    "messages are not settled, they will come again",
                    extra={"count": len(own), "reason": str(unavailable)},
                )
        return [None for _ in batch]


async def _write_and_drain(channel: AbstractChannel, frames: Sequence[spec.Basic.Ack | spec.Basic.Reject]) -> None:
    assert isinstance(channel, Channel)  # noqa: S101 - aiormq's one class of channels
    if channel.is_closed:
        raise ConnectionError("the channel is closed")
    drained = channel.create_future()
    await write(channel, ChannelFrame.marshall(channel.number, frames, drain_future=drained))
    await drained
