"""The console at `/`: a page of static files, which asks the API like any other client. It holds no data of its own."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).with_name("console.html")
FILES = Path(__file__).with_name("console")
# Nothing from elsewhere, nothing in line, no frame around it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serve the console: open to everybody, unlike what it shows."""

    @app.get("/", include_in_schema=False)
    async def console() -> FileResponse:
        return FileResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    app.mount("/console", StaticFiles(directory=FILES))
