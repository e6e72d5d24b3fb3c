"""A documented route that an ASGI application answers without FastAPI's layers."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


def answered_by(endpoint: ASGIApp, router: APIRouter, documented: Callable[..., Any], otherwise: ASGIApp) -> ASGIApp:
    """Return an application that gives requests to `endpoint` if their route in `router` is `documented`.

    All other requests go to `otherwise`.
    """
    routes = {
        (method, route.path): route
        for route in router.routes
        if isinstance(route, APIRoute) and route.endpoint is documented
        for method in route.methods or ()
    }

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        route = routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await otherwise(scope, receive, send)
        else:
            scope["route"] = route  # what the metrics of a request are labelled with
            await endpoint(scope, receive, send)

    return dispatch
