"""The HTTP interface of the gateway: all routes and middleware."""

from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from notify_common.version import VERSION
from starlette.types import ASGIApp, Receive, Scope, Send

from notify_gateway.api_keys import routes as api_keys
from notify_gateway.application import Gateway
from notify_gateway.asyncapi import asyncapi_document
from notify_gateway.console import routes as console
from notify_gateway.deliveries import routes as deliveries
from notify_gateway.events import routes as events
from notify_gateway.health import health_router, metrics_router
from notify_gateway.http import docs_page, problems
from notify_gateway.http.arriving_body import BODY
from notify_gateway.http.dependencies import provide
from notify_gateway.http.middleware import LimitsMiddleware
from notify_gateway.http.origin import OriginCheck
from notify_gateway.notifications import routes as notifications
from notify_gateway.notifications.endpoint import NotificationEndpoint
from notify_gateway.notifications.schemas import CancellationProblem
from notify_gateway.users import routes as users

DESCRIPTION = """Post a notification once. It is stored durably and delivered over each channel that you name. Its whole
history can be read at any time."""

documents_router = APIRouter(tags=["documents"])


@documents_router.get("/asyncapi", response_model=dict[str, Any])
async def asyncapi() -> Response:
    """Return the AsyncAPI document that describes the messages between the services."""
    return Response(_asyncapi_json(), media_type="application/json")


@cache
def _asyncapi_json() -> bytes:
    return bytes(JSONResponse(asyncapi_document()).body)


def create_app(gateway: Gateway) -> ASGIApp:
    """Return the application for both ports: the API on `APP_PORT`, health and metrics on `HEALTH_PORT`."""
    api = _bypass_fastapi(create_api(gateway), gateway.notification_endpoint)
    settings = gateway.settings
    check = OriginCheck(settings.allowed_host_names(), any_host=settings.admits_any_host())
    limited = LimitsMiddleware(api, gateway.metrics.observe_request, check)
    health = create_health(gateway)
    health_port = settings.health_port

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        if server is not None and server[1] == health_port:
            if (body := scope.get(BODY)) is not None:
                body.release()  # these routes read no body, and no middleware frees it
            await health(scope, receive, send)
        else:
            await limited(scope, receive, send)

    return dispatch


def create_api(gateway: Gateway) -> FastAPI:
    """Return the API and its documentation."""
    app = FastAPI(
        title="Notification service",
        version=VERSION,
        description=DESCRIPTION,
        openapi_url=None,  # `docs_page` serves the document and the page
        redirect_slashes=False,
    )
    docs_page.install(app)
    provide(app, *gateway.services)
    problems.install(app, CancellationProblem)
    app.include_router(notifications.bypassed_router)
    for subject in (notifications, deliveries, users, events, api_keys, console):
        app.include_router(subject.router)
    app.include_router(documents_router)
    console.install_pages(app)
    app.include_router(health_router)
    return app


def create_health(gateway: Gateway) -> FastAPI:
    """Return the health and metrics routes for `HEALTH_PORT`, which clients must not be able to reach."""
    app = FastAPI(openapi_url=None)
    provide(app, *gateway.services)
    problems.install(app)
    app.include_router(health_router)
    app.include_router(metrics_router)
    return app


def _bypass_fastapi(api: FastAPI, endpoint: NotificationEndpoint) -> ASGIApp:
    """Return an application that serves `POST /api/notifications` with `endpoint`, and everything else with `api`."""
    routes = {route.path: route for route in notifications.bypassed_router.routes if isinstance(route, APIRoute)}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = routes.get(scope["path"]) if is_post else None
        if route is None:
            await api(scope, receive, send)
        else:
            scope["route"] = route  # request metrics are labelled with it
            await endpoint(scope, receive, send)

    return dispatch
