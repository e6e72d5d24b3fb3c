"""Respond to `GET /v1/events`: replay the missed events, then stream new ones until the client disconnects."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial

from fastapi import HTTPException, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from notify_gateway.errors import TooManyMissed
from notify_gateway.events import server_sent
from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.events.subscriber import Subscriber
from notify_gateway.http.middleware import TRANSPORT, UNLIMITED

HEARTBEAT_INTERVAL = 15.0  # seconds; proxies may close connections that are idle for longer
SEND_TIMEOUT = 30.0  # seconds; a client must read the data of each write within this time


class EventStream(Response):
    """A response that streams events until the client disconnects, must reconnect, or is no longer authorized."""

    media_type = server_sent.MEDIA_TYPE

    def __init__(
        self,
        hub: EventHub,
        history: EventHistory,
        event_filter: EventFilter,
        since: datetime | None,
        is_still_authorized: Callable[[], Awaitable[bool]],
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # nginx would otherwise buffer events
        del self.headers["content-length"]
        self._hub = hub
        self._history = history
        self._filter = event_filter
        self._since = since
        self._is_still_authorized = is_still_authorized

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream events.

        May raise `TooManySubscribers`, `TooManyInProgress` or `DatabaseUnavailable` before anything is sent.
        """
        transport: asyncio.WriteTransport | None = scope.get(TRANSPORT)  # only our own HTTP server sets this
        abort = (lambda: None) if transport is None else transport.abort
        async with self._hub.subscribe(self._filter, abort) as subscriber:
            # Subscribing before the replay avoids a gap between the two, but some events may arrive twice.
            subscriber.replay(await self._replay())
            scope[UNLIMITED]()
            if transport is not None and not transport.is_closing():
                # Bytes in the transport's buffer do not count as waiting, so it must be empty after each write.
                transport.set_write_buffer_limits(high=0)
            sending = asyncio.ensure_future(self._send(subscriber, send))
            disconnected = asyncio.ensure_future(_disconnected(receive))
            try:
                await asyncio.wait({sending, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, disconnected):
                    task.cancel()
                await asyncio.wait({sending, disconnected})
            if not sending.cancelled():
                sending.result()

    async def _replay(self) -> Iterable[bytes]:
        """Return the events that the client has missed, then its new position."""
        now = await self._history.now(self._filter.tenant)
        chunks = [server_sent.RETRY + server_sent.live_chunk(live=self._hub.live)]
        if self._since is not None:
            try:
                render = partial(server_sent.status_chunk, integer_users=self._filter.integer_users)
                chunks += await self._history.since(self._since, self._filter, render)
            except TooManyMissed:
                chunks.append(server_sent.RESET)
        chunks.append(server_sent.position_chunk(now))
        return chunks

    async def _send(self, subscriber: Subscriber, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks(subscriber):
                async with asyncio.timeout(SEND_TIMEOUT):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    # An empty part is not sent, but it waits until the transport has written the previous one.
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
                await asyncio.sleep(self._hub.pause_after_write(self._filter.tenant, asyncio.get_running_loop().time()))
        except TimeoutError:
            subscriber.drop()
        else:
            await send({"type": "http.response.body", "body": b""})

    async def _chunks(self, subscriber: Subscriber) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        heartbeat_at = clock() + HEARTBEAT_INTERVAL
        while True:
            # A constant flow of events must not delay this check: the key may have been revoked.
            if clock() >= heartbeat_at:
                if not await self._is_still_authorized():
                    return
                heartbeat_at = clock() + HEARTBEAT_INTERVAL
                yield server_sent.HEARTBEAT
            try:
                async with asyncio.timeout_at(heartbeat_at):
                    chunk = await subscriber.next()
            except TimeoutError:
                continue
            if chunk is None:
                return
            yield chunk


async def _disconnected(receive: Receive) -> None:
    with suppress(HTTPException):  # raised for a request body that is too long
        while (await receive())["type"] != "http.disconnect":
            pass
