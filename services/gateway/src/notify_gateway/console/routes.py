"""The console at `/`, and the routes that only the console needs.

The console consists of static files that contain no data. It calls the API like any other client.
"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse

from notify_gateway.console.overview import Overview
from notify_gateway.console.schemas import ConsoleLinks, ServiceOverview
from notify_gateway.http.authentication import AuthenticatedRoute, CanOperate, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.http.problems import COMMON_PROBLEMS, documented
from notify_gateway.http.static_files import StaticFiles

PAGE = Path(__file__).with_name("index.html")
STATIC = Path(__file__).with_name("static")
# Forbid other origins, inline code and styles, and framing.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(
    prefix="/v1", tags=["overview"], responses={**COMMON_PROBLEMS, **documented(504)}, route_class=AuthenticatedRoute
)


@router.get("/overview", response_model_exclude_none=True)
async def get_overview(_: CanOperate, overview: Annotated[Overview, Depends(provided(Overview))]) -> ServiceOverview:
    """Return the rates for each second of the last two minutes, and the current backlogs."""
    return await overview.read()


@router.get("/links", response_model_exclude_none=True)
async def get_links(
    principal: CanRead, links: Annotated[ConsoleLinks, Depends(provided(ConsoleLinks))]
) -> ConsoleLinks:
    """Return the URLs of traces and, for keys with the scope `operator`, of RabbitMQ's management UI."""
    return links_visible_to(principal, links)


def links_visible_to(principal: Principal, links: ConsoleLinks) -> ConsoleLinks:
    """Return the links that `principal` may see."""
    return links if Scope.OPERATOR in principal.scopes else links.model_copy(update={"rabbitmq": None})


def install_pages(app: FastAPI) -> None:
    """Serve the console page and its static files without authentication."""

    page = PAGE.read_bytes()

    @app.get("/", include_in_schema=False)
    async def console() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    app.mount("/console", StaticFiles(directory=STATIC))
