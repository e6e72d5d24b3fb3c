"""Acks and rejects in groups: one write for all that were handled meanwhile, one ack for those that leave no gap."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from aiormq import spec
from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.channel import Channel

from notify_common.group_commit import GroupCommit
from notify_common.rabbitmq import BrokerAway, broker_errors, write

log = logging.getLogger(__name__)

MESSAGES_PER_WRITE = 1000


@dataclass(frozen=True, slots=True)
class Settlement:
    """One message of a channel, handled (`ack`) or never to be."""

    channel: AbstractChannel
    tag: int
    ack: bool


@dataclass(slots=True)
class Settled:
    """The delivery tags of a channel that are settled: all up to `through`, and some `beyond`."""

    through: int = 0
    beyond: set[int] = field(default_factory=set)

    def add(self, settlements: Sequence[Settlement]) -> list[spec.Basic.Ack | spec.Basic.Reject]:
        """The frames that settle these, and nothing that is not handled yet."""
        self.beyond.update(each.tag for each in settlements)
        # RabbitMQ counts the messages of a channel from 1.
        while self.through + 1 in self.beyond:
            self.through += 1
            self.beyond.remove(self.through)
        # Rejects first: what is rejected must not be among those that an ack of many takes along.
        rejects = [spec.Basic.Reject(delivery_tag=each.tag, requeue=False) for each in settlements if not each.ack]
        acked = [each.tag for each in settlements if each.ack]
        acks = [spec.Basic.Ack(delivery_tag=tag) for tag in acked if tag > self.through]
        without_gap = [tag for tag in acked if tag <= self.through]
        if without_gap:
            # None up to here is under way any more. The last one must not be settled yet: RabbitMQ would not know it.
            acks.append(spec.Basic.Ack(delivery_tag=max(without_gap), multiple=True))
        return [*rejects, *acks]


class Settlements:
    """The acks and rejects of one consumer, whose channel must be its own.

    Each returns when it is written, or its channel is gone: the broker then delivers the message again.
    """

    def __init__(self) -> None:
        # A channel that is gone takes its tags with it: its messages come again, on another one.
        self._settled: WeakKeyDictionary[AbstractChannel, Settled] = WeakKeyDictionary()
        self._writes = GroupCommit(self._write, max_group=MESSAGES_PER_WRITE)

    async def ack(self, channel: AbstractChannel, tag: int) -> None:
        """The message is handled, with all that follows from it."""
        await self._writes.submit(Settlement(channel, tag, ack=True))

    async def reject(self, channel: AbstractChannel, tag: int) -> None:
        """The message can never be handled: RabbitMQ dead-letters it."""
        await self._writes.submit(Settlement(channel, tag, ack=False))

    async def _write(self, settlements: Sequence[Settlement]) -> None:
        by_channel: defaultdict[AbstractChannel, list[Settlement]] = defaultdict(list)
        for settlement in settlements:
            by_channel[settlement.channel].append(settlement)
        for channel, own in by_channel.items():
            frames = self._settled.setdefault(channel, Settled()).add(own)
            try:
                with broker_errors():
                    await _write_and_drain(channel, frames)
            except BrokerAway as away:
                log.debug(
                    "messages are not settled, they will come again", extra={"count": len(own), "reason": str(away)}
                )


async def _write_and_drain(channel: AbstractChannel, frames: Sequence[spec.Basic.Ack | spec.Basic.Reject]) -> None:
    assert isinstance(channel, Channel)  # noqa: S101 - aiormq's one class of channels
    if channel.is_closed:
        raise ConnectionError("the channel is closed")
    drained = channel.create_future()
    await write(channel, ChannelFrame.marshall(channel.number, frames, drain_future=drained))
    await drained
