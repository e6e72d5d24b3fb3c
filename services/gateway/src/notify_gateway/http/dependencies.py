"""Dependency injection: a route names the type of each service that it needs, using FastAPI's `Depends`."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import FastAPI, Request

Service = TypeVar("Service")


def provide(app: FastAPI, *services: object) -> None:
    """Make each of `services` available to the routes of `app`."""
    app.state.services = {type(service): service for service in services}


def provided(service_type: type[Service]) -> Callable[[Request], Awaitable[Service]]:
    """Return a dependency on the service of this type, for `Annotated[Service, Depends(provided(Service))]`."""

    # This is a coroutine function, because FastAPI would run a plain function in a thread.
    async def service(request: Request) -> Service:
        found: Service = request.app.state.services[service_type]
        return found

    return service
