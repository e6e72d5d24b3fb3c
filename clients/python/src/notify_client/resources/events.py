"""Follow status changes as they happen."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
from typing_extensions import override

from notify_client.config import Config
from notify_client.errors import ApiError
from notify_client.models import Channel
from notify_client.requests import Request, given, nothing, path
from notify_client.subscription import Event, Subscription, is_stream


def stream_events(
    *, user_id: str | None = None, notification_id: UUID | str | None = None, channel: Channel | None = None
) -> Request[None]:
    """Stream events."""
    query = given(user_id=user_id, notification_id=notification_id, channel=channel)
    return Request(method="GET", path=path("events"), query=query, read=nothing)


class _Position:
    """The base class of both kinds of streams, which exposes the state of their subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def live(self) -> bool:
        """False while events arrive late or not at all."""
        return bool(self._subscription.live)

    @property
    def last_event_id(self) -> str | None:
        """The position after the last event. Pass it to `stream` to continue there."""
        return self._subscription.last_event_id


class EventStream(_Position, Iterator[Event]):
    """An iterator over events that never ends. After a lost connection, it resumes where it was.

    As a context manager, it connects at once, and closes the connection at the end. The first connection is given up
    after the client's `max_retries`; later ones are tried until they succeed, unless the key has become invalid.
    """

    def __init__(self, http: httpx.Client, subscription: Subscription) -> None:
        super().__init__(subscription)
        self._http = http
        self._response: httpx.Response | None = None
        self._events = self._follow()

    def close(self) -> None:
        """Close the connection."""
        self._events.close()
        self._disconnect()

    def __enter__(self) -> Self:
        self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @override
    def __next__(self) -> Event:
        return next(self._events)

    def _follow(self) -> Generator[Event, None, None]:
        try:
            while True:
                response = self._response
                if response is None:
                    yield from self._connect()
                    continue
                try:
                    for chunk in response.iter_bytes():
                        yield from self._subscription.received(chunk)
                    wait = self._subscription.wait_after(None)
                except httpx.RequestError as error:
                    wait = self._subscription.wait_after(error)
                self._disconnect()
                time.sleep(wait)
        finally:
            self._disconnect()

    def _connect(self) -> Sequence[Event]:
        while True:
            try:
                response = self._http.send(self._subscription.http_request(), stream=True)
                if not is_stream(response):
                    response.read()
                    raise self._subscription.not_a_stream(response)
                self._response = response
                return self._subscription.connected()
            except (httpx.RequestError, ApiError) as error:
                wait = self._subscription.wait_after(error)
            time.sleep(wait)

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class AsyncEventStream(_Position, AsyncIterator[Event]):
    """An asynchronous iterator over events that never ends. After a lost connection, it resumes where it was.

    As a context manager, it connects at once, and closes the connection at the end. The first connection is given up
    after the client's `max_retries`; later ones are tried until they succeed, unless the key has become invalid.
    """

    def __init__(self, http: httpx.AsyncClient, subscription: Subscription) -> None:
        super().__init__(subscription)
        self._http = http
        self._response: httpx.Response | None = None
        self._events = self._follow()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._events.aclose()
        await self._disconnect()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @override
    async def __anext__(self) -> Event:
        try:
            return await anext(self._events)
        except asyncio.CancelledError:
            self._events = self._follow()  # a cancelled generator has ended; the new one continues at the position
            raise

    async def _follow(self) -> AsyncGenerator[Event, None]:
        try:
            while True:
                response = self._response
                if response is None:
                    for event in await self._connect():
                        yield event
                    continue
                try:
                    async for chunk in response.aiter_bytes():
                        for event in self._subscription.received(chunk):
                            yield event
                    wait = self._subscription.wait_after(None)
                except httpx.RequestError as error:
                    wait = self._subscription.wait_after(error)
                await self._disconnect()
                await asyncio.sleep(wait)
        finally:
            await self._disconnect()

    async def _connect(self) -> Sequence[Event]:
        while True:
            try:
                response = await self._http.send(self._subscription.http_request(), stream=True)
                if not is_stream(response):
                    await response.aread()
                    raise self._subscription.not_a_stream(response)
                self._response = response
                return self._subscription.connected()
            except (httpx.RequestError, ApiError) as error:
                wait = self._subscription.wait_after(error)
            await asyncio.sleep(wait)

    async def _disconnect(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None


class Events:
    """`client.events`."""

    def __init__(self, config: Config, http: httpx.Client) -> None:
        self._config = config
        self._http = http

    def stream(
        self,
        *,
        user_id: str | None = None,
        notification_id: UUID | str | None = None,
        channel: Channel | None = None,
        last_event_id: str | None = None,
    ) -> EventStream:
        """Return an iterator over status changes from now on, or from `last_event_id` on."""
        request = stream_events(user_id=user_id, notification_id=notification_id, channel=channel)
        return EventStream(self._http, Subscription(request, self._config, last_event_id))


class AsyncEvents:
    """`client.events`."""

    def __init__(self, config: Config, http: httpx.AsyncClient) -> None:
        self._config = config
        self._http = http

    def stream(
        self,
        *,
        user_id: str | None = None,
        notification_id: UUID | str | None = None,
        channel: Channel | None = None,
        last_event_id: str | None = None,
    ) -> AsyncEventStream:
        """Return an iterator over status changes from now on, or from `last_event_id` on."""
        request = stream_events(user_id=user_id, notification_id=notification_id, channel=channel)
        return AsyncEventStream(self._http, Subscription(request, self._config, last_event_id))
