"""The HTTP interface of the gateway: all routes and middleware."""

from collections.abc import Sequence
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
from notify_gateway.events.schemas import StatusEvent
from notify_gateway.health import PUBLIC, health_router, metrics_router
from notify_gateway.http import docs_page, problems
from notify_gateway.http.arriving_body import BODY
from notify_gateway.http.dependencies import provide
from notify_gateway.http.middleware import LimitsMiddleware
from notify_gateway.http.origin import OriginCheck
from notify_gateway.legacy import console as legacy_console
from notify_gateway.legacy import deliveries as legacy_deliveries
from notify_gateway.legacy import events as legacy_events
from notify_gateway.legacy import notifications as legacy_notifications
from notify_gateway.legacy import users as legacy_users
from notify_gateway.legacy.schemas import LegacyCancellationProblem
from notify_gateway.notifications import routes as notifications
from notify_gateway.notifications.endpoint import NotificationEndpoint
from notify_gateway.notifications.schemas import CancellationProblem
from notify_gateway.users import routes as users

DESCRIPTION = """Post a notification once. It is stored durably and delivered over each channel that you name. Its whole
history can be read at any time.

The repository of the service has more than this page:

- `clients/python`: a Python client, sync and async, with retries, live events and a check of webhooks
- `docs/cli.md`: the command `notify`, which sends, follows and retries notifications
- `docs/tutorial.md`: the first steps with curl, the Python client and the command
- `docs/recipes.md`: sending from FastAPI and Django, and moving from Celery
- `docs/api.md`: what a client needs to know beyond the schemas

This gateway also explains the [codes of problems](/docs/problems) and the change from
[`/api` to `/v1`](/docs/v1-migration)."""

TAGS = {
    "notifications": "Post, find and cancel notifications.",
    "deliveries": "Find deliveries, and retry those that failed.",
    "users": "Users' stored recipients and opt-outs.",
    "events": "Live status changes.",
    "keys": "API keys.",
    "overview": "The state of the whole service, for its console.",
    "documents": "Documents that describe the service.",
    "health": "Health checks.",
}

documents_router = APIRouter(tags=["documents"])


@documents_router.get("/asyncapi", openapi_extra=PUBLIC, response_model=dict[str, Any])
async def asyncapi() -> Response:
    """Return the AsyncAPI document that describes the messages between the services."""
    return Response(_asyncapi_json(), media_type="application/json")


@cache
def _asyncapi_json() -> bytes:
    return bytes(JSONResponse(asyncapi_document()).body)


def create_app(gateway: Gateway) -> ASGIApp:
    """Return the application for both ports: the API on `APP_PORT`, health and metrics on `HEALTH_PORT`."""
    api = _bypass_fastapi(create_api(gateway), gateway.notification_endpoints)
    settings = gateway.settings
    check = OriginCheck(settings.allowed_host_names(), any_host=settings.admits_any_host())
    tenant_of = gateway.authenticator.known_tenant
    limited = LimitsMiddleware(api, gateway.metrics.observe_request, check, tenant_of=tenant_of)
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
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        servers=[{"url": "/", "description": "This gateway."}],
        contact={"name": "The operators of this gateway"},
        license_info={"name": "MIT", "identifier": "MIT"},
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    docs_page.install(app)
    provide(app, *gateway.services)
    problems.install(app, CancellationProblem, LegacyCancellationProblem, StatusEvent)
    for version in (notifications, legacy_notifications):
        app.include_router(version.bypassed_router)
    for subject in (notifications, deliveries, users, events, api_keys, console):
        app.include_router(subject.router)
    for subject in (legacy_notifications, legacy_deliveries, legacy_users, legacy_events, legacy_console):
        app.include_router(subject.router)
    app.include_router(documents_router)
    console.install_pages(app)
    app.include_router(health_router)
    return app


def _operation_id(route: APIRoute) -> str:
    """Return the name of an operation, from which generators of clients make the name of a method."""
    return f"legacy_{route.name}" if route.path.startswith(problems.LEGACY_PREFIX) else route.name


def create_health(gateway: Gateway) -> FastAPI:
    """Return the health and metrics routes for `HEALTH_PORT`, which clients must not be able to reach."""
    app = FastAPI(openapi_url=None)
    provide(app, *gateway.services)
    problems.install(app)
    app.include_router(health_router)
    app.include_router(metrics_router)
    return app


def _bypass_fastapi(api: FastAPI, endpoints: Sequence[NotificationEndpoint]) -> ASGIApp:
    """Return an application that serves new notifications with `endpoints`, and everything else with `api`."""
    routers = (notifications.bypassed_router, legacy_notifications.bypassed_router)
    routes = {route.path: route for router in routers for route in router.routes if isinstance(route, APIRoute)}
    by_path = {endpoint.path: endpoint for endpoint in endpoints}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = routes.get(scope["path"]) if is_post else None
        if route is None:
            await api(scope, receive, send)
        else:
            scope["route"] = route  # request metrics are labelled with it
            await by_path[route.path.rstrip("/")](scope, receive, send)

    return dispatch
