"""Acks in groups: one write for all that were handled meanwhile, and one frame for those that leave no gap."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from aiormq import spec
from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.channel import Channel
from faststream.rabbit import RabbitMessage

from notify_common.group_commit import GroupCommit
from notify_common.rabbitmq import BrokerAway, broker_errors

log = logging.getLogger(__name__)

MESSAGES_PER_WRITE = 1000


@dataclass(slots=True)
class _Settled:
    """The delivery tags of a channel that are acked: all up to `through`, and some `beyond`."""

    through: int = 0
    beyond: set[int] = field(default_factory=set)

    def add(self, tags: Sequence[int]) -> list[spec.Basic.Ack]:
        """The frames that ack `tags`, and nothing that is not handled yet."""
        before = self.through
        self.beyond.update(tags)
        while self.through + 1 in self.beyond:
            self.through += 1
            self.beyond.remove(self.through)
        frames = [spec.Basic.Ack(delivery_tag=tag) for tag in tags if tag > self.through]
        if self.through > before:
            # RabbitMQ counts the messages of a channel from 1: none of those up to here is under way any more.
            frames.append(spec.Basic.Ack(delivery_tag=self.through, multiple=True))
        return frames


class GroupedAcks:
    """The acks of one subscriber, whose channel must be its own."""

    def __init__(self) -> None:
        # A channel that is gone takes its tags with it: its messages come again, on another one.
        self._settled: WeakKeyDictionary[AbstractChannel, _Settled] = WeakKeyDictionary()
        self._writes = GroupCommit(self._write, max_group=MESSAGES_PER_WRITE)

    async def ack(self, message: RabbitMessage) -> None:
        """Return when the ack is written, or its connection is gone: the broker then delivers the message again."""
        await self._writes.submit(message)

    async def _write(self, messages: Sequence[RabbitMessage]) -> None:
        by_channel: defaultdict[AbstractChannel, list[int]] = defaultdict(list)
        for message in messages:
            tag = message.raw_message.delivery_tag
            if tag is not None:
                by_channel[message.raw_message.channel].append(tag)
        for channel, tags in by_channel.items():
            frames = self._settled.setdefault(channel, _Settled()).add(tags)
            try:
                with broker_errors():
                    await _write_and_drain(channel, frames)
            except BrokerAway as away:
                log.debug("messages are not acked, they will come again count=%d reason=%s", len(tags), away)


async def _write_and_drain(channel: AbstractChannel, frames: Sequence[spec.Basic.Ack]) -> None:
    assert isinstance(channel, Channel)  # noqa: S101 - aiormq's one class of channels
    if channel.is_closed:
        raise ConnectionError("the channel is closed")
    drained = channel.create_future()
    await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames, drain_future=drained))
    await drained
