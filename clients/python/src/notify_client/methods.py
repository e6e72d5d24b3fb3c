"""Turn functions that build requests into methods that send them.

Each operation of the API is one function, such as `create_notification`, which returns a `Request`. The four functions
here make methods of it, with the same parameters: one that returns the result, one that must be awaited, and two whose
results are iterators over all items of a list.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from typing_extensions import override

from notify_client.models import Page
from notify_client.requests import Request

P = ParamSpec("P")
Result = TypeVar("Result")
Item = TypeVar("Item")


class Sender(Protocol):
    """A client that sends requests."""

    def send(self, request: Request[Result]) -> Result:
        """Send the request, and return the result."""


class AsyncSender(Protocol):
    """A client that sends requests in an event loop."""

    async def send(self, request: Request[Result]) -> Result:
        """Send the request, and return the result."""


class Resource:
    """A group of methods, such as `client.notifications`."""

    def __init__(self, client: Sender) -> None:
        self._client = client


class AsyncResource:
    """A group of methods that must be awaited."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client


class Listing(Iterator[Item]):
    """An iterator over the items of a list, which requests one page after the other."""

    def __init__(self, client: Sender, request: Request[Page[Item]]) -> None:
        self._client = client
        self._request = request
        self._items = (item for page in self.pages() for item in page.items)

    def pages(self) -> Iterator[Page[Item]]:
        """Iterate over the pages instead, from the first one."""
        request: Request[Page[Item]] | None = self._request
        while request is not None:
            page = self._client.send(request)
            yield page
            request = _next(request, page)

    @override
    def __next__(self) -> Item:
        return next(self._items)


class AsyncListing(AsyncIterator[Item]):
    """An asynchronous iterator over the items of a list, which requests one page after the other."""

    def __init__(self, client: AsyncSender, request: Request[Page[Item]]) -> None:
        self._client = client
        self._request = request
        self._items = (item async for page in self.pages() for item in page.items)

    async def pages(self) -> AsyncIterator[Page[Item]]:
        """Iterate over the pages instead, from the first one."""
        request: Request[Page[Item]] | None = self._request
        while request is not None:
            page = await self._client.send(request)
            yield page
            request = _next(request, page)

    @override
    async def __anext__(self) -> Item:
        return await anext(self._items)


def _next(request: Request[Page[Item]], page: Page[Item]) -> Request[Page[Item]] | None:
    if not page.has_more or page.next_cursor is None:
        return None
    return replace(request, query={**request.query, "cursor": page.next_cursor})


def method(build: Callable[P, Request[Result]]) -> Callable[Concatenate[Resource, P], Result]:
    """Return a method that sends the request, and returns the result."""

    def call(self: Resource, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return self._client.send(build(*args, **kwargs))

    return _described(call, build)


def async_method(build: Callable[P, Request[Result]]) -> Callable[Concatenate[AsyncResource, P], Awaitable[Result]]:
    """Return a method that sends the request, and must be awaited for the result."""

    async def call(self: AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return await self._client.send(build(*args, **kwargs))

    return _described(call, build)


def listing(build: Callable[P, Request[Page[Item]]]) -> Callable[Concatenate[Resource, P], Listing[Item]]:
    """Return a method that returns an iterator over the items of all pages."""

    def call(self: Resource, /, *args: P.args, **kwargs: P.kwargs) -> Listing[Item]:
        return Listing(self._client, build(*args, **kwargs))

    return _described(call, build)


def async_listing(
    build: Callable[P, Request[Page[Item]]],
) -> Callable[Concatenate[AsyncResource, P], AsyncListing[Item]]:
    """Return a method that returns an asynchronous iterator over the items of all pages."""

    def call(self: AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> AsyncListing[Item]:
        return AsyncListing(self._client, build(*args, **kwargs))

    return _described(call, build)


Described = TypeVar("Described", bound=Callable[..., Any])


def _described(call: Described, build: Callable[..., Any]) -> Described:
    """Give `call` the documentation and the parameters of `build`, for `help()` and editors."""
    call.__name__, call.__doc__ = build.__name__, build.__doc__
    signature = inspect.signature(build)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [self, *signature.parameters.values()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
