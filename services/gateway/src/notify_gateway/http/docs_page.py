"""The page at `/docs`: Swagger UI, which shows the OpenAPI document and can send requests."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response

from notify_gateway.http.deprecation import GUIDE
from notify_gateway.http.problem_codes import DESCRIPTIONS
from notify_gateway.http.problems import PAGE
from notify_gateway.http.static_files import StaticFiles

OPENAPI = "/openapi.json"
ASSETS = "/docs/assets"
MIGRATION_PAGE = Path(__file__).with_name("v1_migration.html")
"""`make api-docs` writes it from `docs/v1-migration.md`."""
INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
PLAIN = {"Content-Security-Policy": "default-src 'none'"}
# The page shares its origin with the console, whose key is in the session storage of its tab. The policy therefore
# allows only Swagger UI's own scripts, and requests only to this origin. Swagger UI needs inline styles.
POLICY = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _problems_page() -> str:
    """Return the page to which the types of problems link."""
    items = "".join(
        f'<dt id="{code}"><code>{code}</code></dt><dd>{escape(text)}</dd>' for code, text in DESCRIPTIONS.items()
    )
    return f"<!doctype html><html lang=en><title>Problems</title><h1>Problems</h1><dl>{items}</dl></html>"


def install(app: FastAPI) -> None:
    """Serve the page, its assets, which come from the gateway instead of a CDN, and the OpenAPI document."""
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))

    @cache
    def document() -> bytes:
        return bytes(JSONResponse(app.openapi()).body)  # FastAPI would render it again for each request

    @app.get(OPENAPI, include_in_schema=False)
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    problems = _problems_page()

    @app.get(PAGE, include_in_schema=False)
    async def problem_types() -> HTMLResponse:
        return HTMLResponse(problems, headers=PLAIN)

    migration = MIGRATION_PAGE.read_bytes()

    @app.get(GUIDE, include_in_schema=False)
    async def migration_guide() -> HTMLResponse:
        return HTMLResponse(migration, headers=PLAIN)

    page = get_swagger_ui_html(
        openapi_url=OPENAPI,
        title=f"{app.title} - Swagger UI",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )
    content = bytes(page.body).decode()
    hashes = [b64encode(sha256(script.encode()).digest()).decode() for script in INLINE_SCRIPT.findall(content)]
    policy = POLICY.format(hashes=" ".join(f"'sha256-{each}'" for each in hashes))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(content, headers={"Content-Security-Policy": policy})
