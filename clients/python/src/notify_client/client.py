"""The two clients. They differ only in how they wait."""

import asyncio
import time
from types import TracebackType
from typing import Self, TypeVar

import httpx
from typing_extensions import override

from notify_client.config import MAX_RETRIES, TIMEOUT, configure
from notify_client.errors import NotifyError
from notify_client.overview import ConsoleLinks, ServiceOverview
from notify_client.requests import Request
from notify_client.resources.deliveries import AsyncDeliveries, Deliveries
from notify_client.resources.events import AsyncEvents, Events
from notify_client.resources.keys import AsyncKeys, Keys
from notify_client.resources.notifications import AsyncNotifications, Notifications
from notify_client.resources.operator import get_links, get_overview
from notify_client.resources.retries import AsyncRetries, Retries
from notify_client.resources.users import AsyncUsers, Users
from notify_client.retrying import Call

Result = TypeVar("Result")


class Client:
    """A client of the notification service.

    Without `base_url` and `api_key`, the environment variables `NOTIFY_URL` and `NOTIFY_API_KEY` are used. Failed
    requests are repeated up to `max_retries` times, if that is safe and may help. Threads may share a client. Pass an
    `http_client` to set proxies or certificates; it is not closed together with this client.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        http_client: httpx.Client | None = None,
    ) -> None:
        self.config = configure(base_url, api_key, timeout, max_retries)
        self.http = http_client or httpx.Client()
        self._owns_http = http_client is None
        self.notifications = Notifications(self)
        self.deliveries = Deliveries(self)
        self.retries = Retries(self)
        self.users = Users(self)
        self.keys = Keys(self)
        self.events = Events(self.config, self.http)

    def overview(self) -> ServiceOverview:
        """Return the figures in the console's overview, which need the scope `operator`."""
        return self.send(get_overview())

    def links(self) -> ConsoleLinks:
        """Return where the console links to."""
        return self.send(get_links())

    def send(self, request: Request[Result]) -> Result:
        """Send the request until it succeeds, must not be repeated, or has been repeated `max_retries` times."""
        call = Call(request, self.config)
        while True:
            try:
                return call.result(self.http.send(call.http_request))
            except (httpx.RequestError, NotifyError) as error:
                wait = call.wait_after(error)
            time.sleep(wait)

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.base_url!r})"


class AsyncClient:
    """A `Client` for event loops: methods must be awaited, and lists are asynchronous iterators."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self.config = configure(base_url, api_key, timeout, max_retries)
        self.http = http_client or httpx.AsyncClient()
        self._owns_http = http_client is None
        self.notifications = AsyncNotifications(self)
        self.deliveries = AsyncDeliveries(self)
        self.retries = AsyncRetries(self)
        self.users = AsyncUsers(self)
        self.keys = AsyncKeys(self)
        self.events = AsyncEvents(self.config, self.http)

    async def overview(self) -> ServiceOverview:
        """Return the figures in the console's overview, which need the scope `operator`."""
        return await self.send(get_overview())

    async def links(self) -> ConsoleLinks:
        """Return where the console links to."""
        return await self.send(get_links())

    async def send(self, request: Request[Result]) -> Result:
        """Send the request until it succeeds, must not be repeated, or has been repeated `max_retries` times."""
        call = Call(request, self.config)
        while True:
            try:
                return call.result(await self.http.send(call.http_request))
            except (httpx.RequestError, NotifyError) as error:
                wait = call.wait_after(error)
            await asyncio.sleep(wait)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.base_url!r})"
