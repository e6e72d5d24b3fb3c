"""The HTTP interface of the gateway: all routes, and what surrounds them."""

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from notify_common.version import VERSION
from starlette.types import ASGIApp, Receive, Scope, Send

from notify_gateway.application import Gateway
from notify_gateway.asyncapi import asyncapi_document
from notify_gateway.console import routes as console
from notify_gateway.deliveries import routes as deliveries
from notify_gateway.events import routes as events
from notify_gateway.health import health_router, metrics_router
from notify_gateway.http import problems
from notify_gateway.http.dependencies import provide
from notify_gateway.http.endpoint_route import answered_by
from notify_gateway.http.middleware import LimitsMiddleware
from notify_gateway.notifications import routes as notifications
from notify_gateway.notifications.schemas import CancellationProblem
from notify_gateway.users import routes as users

DESCRIPTION = """Post a notification once; it is stored durably and delivered over every channel you name, and its
story can always be told."""

documents_router = APIRouter(tags=["documents"])


@documents_router.get("/asyncapi")
async def asyncapi() -> dict[str, Any]:
    """The messages between the services, as an AsyncAPI document."""
    return asyncapi_document()


def create_app(gateway: Gateway) -> ASGIApp:
    """Return the application for both ports: the API, and on `HEALTH_PORT` health and metrics."""
    endpoint, router = gateway.post_notification, notifications.endpoint_router
    api = answered_by(endpoint, router, notifications.create_notification, otherwise=create_api(gateway))
    limited = LimitsMiddleware(api, gateway.metrics.observe_request)
    health = create_health(gateway)
    health_port = gateway.settings.health_port

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        if server is not None and server[1] == health_port:
            await health(scope, receive, send)
        else:
            await limited(scope, receive, send)

    return dispatch


def create_api(gateway: Gateway) -> FastAPI:
    """Return all routes and their documentation, whose assets are served from here and not from another host."""
    app = FastAPIOffline(
        title="Notification service",
        version=VERSION,
        description=DESCRIPTION,
        redoc_url=None,
        static_url="/docs/assets",
        redirect_slashes=False,
    )
    # There is no OAuth 2 login to redirect from.
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", "") != app.swagger_ui_oauth2_redirect_url
    ]
    provide(app, *gateway.services)
    problems.install(app, CancellationProblem)
    for router in (
        notifications.endpoint_router,
        notifications.router,
        deliveries.router,
        users.router,
        events.router,
        console.router,
        documents_router,
    ):
        app.include_router(router)
    console.install_pages(app)
    app.include_router(health_router)
    return app


def create_health(gateway: Gateway) -> FastAPI:
    """Return what is served on `HEALTH_PORT`, for operators and not for clients."""
    app = FastAPI(openapi_url=None)
    provide(app, *gateway.services)
    problems.install(app)
    app.include_router(health_router)
    app.include_router(metrics_router)
    return app
