"""Publish a batch with one write. Only this module reaches below the public interface of aiormq.

aiormq's `basic_publish` writes each message separately and needs a task for each confirm. One write per batch costs a
fraction of that (`docs/decisions/0008-one-write-per-group.md`). This module uses what `basic_publish` uses: the
channel's lock, delivery tags, confirmations and write queue. aiormq's version is locked, and tests with a real broker
reject, return, interrupt and freeze publishes.

Two other modules of this package reach into other libraries: `connection.py` overrides methods of aio-pika and
FastStream, so that connections fail over to another node, and `properties.py` replaces decoders of pamqp.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiormq import spec
from aiormq.abc import ChannelFrame, FrameType
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from notify_common.errors import NotWritten
from notify_common.rabbitmq.connection import run_unless_closed

PublishParts = tuple[spec.Basic.Publish, spec.Basic.Properties, bytes]


async def write_publishes(
    channel: Channel, publishes: Sequence[PublishParts], *, may_write: Callable[[], bool], abandon: Callable[[], None]
) -> "list[asyncio.Future[Any]]":
    """Publish with one write; return one future per message, which fails if the message is rejected or returned.

    Call `forget_publishes` once they are no longer awaited. Directly before the write, `may_write` is called; if it
    returns False, nothing is written, and `NotWritten` is raised. `abandon` is called if the channel must not be used
    again.
    """
    frames: list[FrameType | ContentBody] = []
    for publish, properties, body in publishes:
        size = channel.max_content_size if channel.max_content_size > 0 else len(body) or 1  # 0 means no limit
        body_frames = [ContentBody(body[at : at + size]) for at in range(0, len(body), size)]
        frames += [publish, ContentHeader(properties=properties, body_size=len(body)), *body_frames]
    payload = ChannelFrame.marshall(channel.number, frames)
    loop = asyncio.get_running_loop()
    async with channel.lock:
        if not may_write():
            raise NotWritten("the messages were not written in time")
        # RabbitMQ confirms messages by their number on the channel, so each message gets its number here.
        first = channel.delivery_tag + 1
        confirmations = {first + number: loop.create_future() for number in range(len(publishes))}
        channel.delivery_tag += len(publishes)
        channel.confirmations.update(confirmations)
        channel.message_id_delivery_tag.update(zip(_message_ids(publishes), confirmations, strict=True))
        try:
            await _write(channel, payload)
        except BaseException:
            # It is unknown whether the messages were written, so later confirms might be matched to the wrong ones.
            abandon()
            raise
    return list(confirmations.values())


def forget_publishes(channel: Channel, publishes: Sequence[PublishParts]) -> None:
    """Forget the messages' ids. Call this once none of the messages can be returned any more."""
    for message_id in _message_ids(publishes):
        channel.message_id_delivery_tag.pop(message_id, None)


async def _write(channel: Channel, frames: ChannelFrame) -> None:
    """Queue the frames for the connection's writer."""
    try:
        channel.write_queue.put_nowait(frames)
    except asyncio.QueueFull:
        await run_unless_closed(channel, channel.write_queue.put(frames))


def _message_ids(publishes: Sequence[PublishParts]) -> list[str]:
    return [properties.message_id or "" for _, properties, _ in publishes]
