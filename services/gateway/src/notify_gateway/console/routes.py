"""The console at `/`, and the routes that only the console needs.

The console consists of static files that contain no data. It calls the API like any other client.
"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse

from notify_gateway.console.overview import Overview
from notify_gateway.console.schemas import ConsoleLinks, OverviewView
from notify_gateway.http.authentication import AuthenticatedRoute, CanOperate, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.principal import Scope
from notify_gateway.http.static_files import StaticFiles

PAGE = Path(__file__).with_name("index.html")
STATIC = Path(__file__).with_name("static")
# Forbid other origins, inline code and styles, and framing.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(tags=["overview"], route_class=AuthenticatedRoute)


@router.get("/overview")
async def overview(_: CanOperate, overview: Annotated[Overview, Depends(provided(Overview))]) -> OverviewView:
    """Return the rates for each second of the last two minutes, and the current backlogs."""
    return await overview.read()


@router.get("/links")
async def links(principal: CanRead, links: Annotated[ConsoleLinks, Depends(provided(ConsoleLinks))]) -> ConsoleLinks:
    """Return the URLs of traces and, for keys with the scope `operator`, of RabbitMQ's management UI.

    A URL that is not configured is null.
    """
    return links if Scope.OPERATOR in principal.scopes else links.model_copy(update={"rabbitmq": None})


def install_pages(app: FastAPI) -> None:
    """Serve the console page and its static files without authentication."""

    page = PAGE.read_bytes()

    @app.get("/", include_in_schema=False)
    async def console() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    app.mount("/console", StaticFiles(directory=STATIC))
