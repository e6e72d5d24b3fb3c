"""The answer to `GET /api/events`: what was missed, then what happens, for as long as the client listens."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from fastapi import Response
from typing_extensions import override

from notify_gateway.event_history import EventHistory, TooManyMissed, Wanted
from notify_gateway.limits import ABORT, UNLIMITED, AsgiScope, Receive, Send
from notify_gateway.live_events import Listener, LiveEvents
from notify_gateway.server_sent import HEARTBEAT, MEDIA_TYPE, RESET, RETRY, live_chunk, status_chunk

HEARTBEAT_INTERVAL = 15.0  # seconds: proxies close what is silent for longer


class EventStream(Response):
    """Server-sent events until the client is gone, or is to come back."""

    media_type = MEDIA_TYPE

    def __init__(self, live: LiveEvents, history: EventHistory, wanted: Wanted, since: datetime | None) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._live = live
        self._history = history
        self._wanted = wanted
        self._since = since

    @override
    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Raises `TooManyListeners` and `DatabaseAway`, before anything is sent."""
        async with self._live.listening(self._wanted, scope.get(ABORT, _nothing)) as listener:
            # It listens by now: nothing is missed in between, and some may come twice.
            missed = await self._missed()
            scope[UNLIMITED]()
            sending = asyncio.ensure_future(self._send(listener, missed, send))
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, gone):
                    task.cancel()
                await asyncio.wait({sending, gone})
            if not sending.cancelled():
                sending.result()

    async def _missed(self) -> list[bytes]:
        if self._since is None:
            return []
        try:
            return [status_chunk(event) for event in await self._history.since(self._since, self._wanted)]
        except TooManyMissed:
            return [RESET]

    async def _send(self, listener: Listener, missed: list[bytes], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks(listener, missed):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self, listener: Listener, missed: list[bytes]) -> AsyncIterator[bytes]:
        yield RETRY + live_chunk(live=self._live.live)
        for chunk in missed:
            yield chunk
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_INTERVAL):
                    following = await listener.next()
            except TimeoutError:
                following = HEARTBEAT
            if following is None:
                return
            yield following


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _nothing() -> None:
    """Where no connection is to be ended."""
