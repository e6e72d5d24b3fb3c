"""The answer to `GET /api/events`: what was missed, then what happens, for as long as the client listens."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import datetime

from fastapi import HTTPException, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from notify_gateway.errors import TooManyMissed
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub, Subscriber
from notify_gateway.events.server_sent import (
    HEARTBEAT,
    MEDIA_TYPE,
    RESET,
    RETRY,
    live_chunk,
    position_chunk,
    status_chunk,
    take_for_a_write,
)
from notify_gateway.http.middleware import ABORT, UNLIMITED

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL = 15.0  # seconds: proxies close what is silent for longer; the key is looked at, too
SEND_TIMEOUT = 30.0  # seconds a client may take to read what was sent before


class EventStream(Response):
    """Server-sent events until the client is gone, or is to come back."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        live: EventHub,
        history: EventHistory,
        wanted: EventFilter,
        since: datetime | None,
        admitted: Callable[[], Awaitable[bool]],
    ) -> None:
        super().__init__(media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})  # nginx would keep it back
        del self.headers["content-length"]
        self._live = live
        self._history = history
        self._wanted = wanted
        self._since = since
        self._admitted = admitted

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `TooManySubscribers` and `DatabaseUnavailable`, before anything is sent."""
        abort = scope.get(ABORT, _nothing)
        async with self._live.listening(self._wanted, abort) as listener:
            # It listens by now: nothing is missed in between, and some may come twice.
            first = await self._first()
            scope[UNLIMITED]()
            sending = asyncio.ensure_future(self._send(listener, first, send, abort))
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, gone):
                    task.cancel()
                await asyncio.wait({sending, gone})
            if not sending.cancelled():
                sending.result()

    async def _first(self) -> deque[bytes]:
        """What the client has missed, and where it is then."""
        now = await self._history.now()
        first = deque([RETRY + live_chunk(live=self._live.live)])
        if self._since is not None:
            try:
                first.extend(map(status_chunk, await self._history.since(self._since, self._wanted)))
            except TooManyMissed:
                first.append(RESET)
        first.append(position_chunk(now))
        return first

    async def _send(self, listener: Subscriber, first: deque[bytes], send: Send, abort: Callable[[], None]) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks(listener, first):
                async with asyncio.timeout(SEND_TIMEOUT):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            log.info("a listener that does not read is dropped", extra={"tenant": self._wanted.tenant})
            abort()
        else:
            await send({"type": "http.response.body", "body": b""})

    async def _chunks(self, listener: Subscriber, first: deque[bytes]) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        heartbeat_at = clock() + HEARTBEAT_INTERVAL
        while True:
            if clock() >= heartbeat_at:  # however much there is to tell
                if not await self._admitted():
                    return
                heartbeat_at = clock() + HEARTBEAT_INTERVAL
                yield HEARTBEAT
            if first:
                yield take_for_a_write(first)
                continue
            try:
                async with asyncio.timeout_at(heartbeat_at):
                    following = await listener.next()
            except TimeoutError:
                continue
            if following is None:
                return
            yield following


async def _disconnected(receive: Receive) -> None:
    with suppress(HTTPException):  # a body that is too long
        while (await receive())["type"] != "http.disconnect":
            pass


def _nothing() -> None:
    """Where no connection is to be ended."""
