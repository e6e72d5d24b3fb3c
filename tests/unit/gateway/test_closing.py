"""How responses are passed to the transport."""

import asyncio
from collections.abc import Iterable

from notify_gateway.http.closing import LingeringTransport
from typing_extensions import override

HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok"


class RecordingTransport(asyncio.Transport):
    """Records what it is given in each call, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | None] = []

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    @override
    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.calls.append(b"".join(list_of_data))

    @override
    def is_closing(self) -> bool:
        return None in self.calls

    @override
    def pause_reading(self) -> None: ...

    @override
    def resume_reading(self) -> None: ...

    @override
    def close(self) -> None:
        self.calls.append(None)


async def test_head_is_sent_together_with_its_body() -> None:
    recorded = RecordingTransport()
    transport = LingeringTransport(recorded, asyncio.get_running_loop())
    for part in (HEAD, BODY, BODY):
        transport.write(part)
    await asyncio.sleep(0)
    assert recorded.calls == [HEAD + BODY, BODY]


async def test_head_without_a_body_is_sent_at_once() -> None:
    """An event stream may have no event for a long time."""
    recorded = RecordingTransport()
    transport = LingeringTransport(recorded, asyncio.get_running_loop())
    transport.write(HEAD)
    await asyncio.sleep(0)
    transport.write(BODY)
    assert recorded.calls == [HEAD, BODY]


async def test_head_is_sent_before_the_connection_is_closed() -> None:
    recorded = RecordingTransport()
    transport = LingeringTransport(recorded, asyncio.get_running_loop())
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    transport.lost()
    assert recorded.calls == [HEAD, None]


async def test_head_is_sent_before_the_event_loop_closes_the_connection() -> None:
    """It does so once the client has said that it sends no more."""
    recorded = RecordingTransport()
    transport = LingeringTransport(recorded, asyncio.get_running_loop())
    transport.write(HEAD)
    transport.limit_flush()
    transport.lost()
    assert recorded.calls == [HEAD]
