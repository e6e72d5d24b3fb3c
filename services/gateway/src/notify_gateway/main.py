"""The gateway's start: settings, application, HTTP server."""

import logging
import sys

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from notify_common.process import load_settings, run, serve

from notify_gateway import api, console_pages, problems
from notify_gateway.commands import run_command
from notify_gateway.gateway import ROLE, Gateway
from notify_gateway.limits import App, AsgiScope, LimitedProtocol, Limits, Receive, Send
from notify_gateway.post_notification import PostNotification
from notify_gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

DESCRIPTION = """Post a notification once; it is stored durably and delivered over every channel you name, and its
story can always be told."""


POSTING = frozenset({"/api/notifications", "/api/notifications/"})


def create_app(gateway: Gateway) -> App:
    """The HTTP application: the hot path, then everything else, within the limits of a request."""
    routes = create_api(gateway)
    health = create_health(gateway)
    post_notification: App = routes.state.post_notification
    posting = next(route for route in api.posting_router.routes if isinstance(route, APIRoute))

    async def dispatch(scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in POSTING:
            # What the route would do, without the way there.
            scope["route"] = posting
            await post_notification(scope, receive, send)
        else:
            await routes(scope, receive, send)

    limited = Limits(dispatch, gateway.metrics.answered)

    async def serve(scope: AsgiScope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        if server is not None and server[1] == gateway.health_port:
            await health(scope, receive, send)
        else:
            await limited(scope, receive, send)

    return serve


def create_health(gateway: Gateway) -> FastAPI:
    """What is served on `HEALTH_PORT`: for whoever runs the service, not for its clients."""
    app = FastAPI(openapi_url=None)
    app.state.gateway = gateway
    problems.install(app)
    app.include_router(api.health_router)
    app.include_router(api.metrics_router)
    return app


def create_api(gateway: Gateway) -> FastAPI:
    """All routes, and their documentation, which brings its own assets: no page here loads from another host."""
    app = FastAPIOffline(
        title="Notification service",
        version="1",
        description=DESCRIPTION,
        redoc_url=None,
        static_url="/docs/assets",
        redirect_slashes=False,
    )
    # Of a login that there is not, and open to everybody.
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", "") != app.swagger_ui_oauth2_redirect_url
    ]
    app.state.gateway = gateway
    app.state.post_notification = PostNotification(gateway)
    problems.install(app)
    app.include_router(api.posting_router)
    app.include_router(api.router)
    app.include_router(api.deliveries_router)
    app.include_router(api.users_router)
    app.include_router(api.events_router)
    app.include_router(api.console_router)
    app.include_router(api.documents_router)
    console_pages.install(app)
    app.include_router(api.health_router)
    return app


async def _serve(settings: GatewaySettings) -> None:
    for variable in settings.example_secrets():
        log.warning("a secret is that of the example file: everybody knows it", extra={"variable": variable})
    gateway = Gateway(settings, settings.tracing(ROLE))
    await serve(
        create_app(gateway),
        host=settings.app_host,
        port=settings.app_port,
        work=gateway.work,
        http=LimitedProtocol,
        also=(settings.health_host, settings.health_port),
        stopping=gateway.live.close,
    )


def main() -> None:
    """Run the gateway, or a command of an operator."""
    if len(sys.argv) > 1:
        run_command(sys.argv[1:])
    settings = load_settings(GatewaySettings)
    run(lambda: _serve(settings), settings)
