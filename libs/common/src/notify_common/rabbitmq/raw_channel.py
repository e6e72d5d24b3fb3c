"""aiormq channels on the connection that a FastStream broker keeps."""

import asyncio
from typing import Any

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from faststream.rabbit import RabbitBroker


async def open_channel(broker: RabbitBroker, *, publisher_confirms: bool) -> Channel:
    """A channel of aiormq on the connection that `broker` keeps; it is not opened anew when it is lost."""
    connection = await broker.connect()
    transport = connection.transport
    if transport is None or transport.connection.is_closed or not connection.connected.is_set():
        raise ConnectionError("not connected to RabbitMQ")
    channel = await transport.connection.channel(
        publisher_confirms=publisher_confirms,
        on_return_raises=publisher_confirms,  # an unroutable message is an error, not a silent loss
    )
    assert isinstance(channel, Channel)  # noqa: S101 - aiormq's one class of channels
    return channel


async def write(channel: Channel, frames: ChannelFrame) -> None:
    """Hand the frames to the connection's writer; an error where the channel ends first: nobody takes them then."""
    try:
        channel.write_queue.put_nowait(frames)
    except asyncio.QueueFull:
        writing = asyncio.create_task(channel.write_queue.put(frames))
        try:
            await wait_unless_closed(channel, writing)
            if not writing.done():
                raise ConnectionError("the channel is closed") from None
        finally:
            writing.cancel()


async def wait_unless_closed(channel: Channel, awaited: "asyncio.Future[Any]") -> None:
    """Return when `awaited` is done, or the channel has ended."""
    closing = channel.closing
    try:
        await asyncio.wait({awaited, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()  # an observer of the channel's end, which the channel would keep
