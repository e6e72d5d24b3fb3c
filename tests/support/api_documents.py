"""`make api-docs`: write the OpenAPI and AsyncAPI documents into the folder `api`, where changes can be reviewed.

It also writes the page about the migration to `/v1`, which gateways serve, from `docs/v1-migration.md`.
"""

import json
import re
from typing import Any

from markdown_it import MarkdownIt
from notify_gateway.application import Gateway
from notify_gateway.asyncapi import asyncapi_document
from notify_gateway.http import docs_page
from notify_gateway.http_api import create_api
from notify_gateway.settings import GatewaySettings

from support.servers import PROJECT

FOLDER = PROJECT / "api"
RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https:)[^)]+\)")


def documents() -> dict[str, dict[str, Any]]:
    """Return the documents by the names of their files."""
    gateway = Gateway(GatewaySettings())
    return {"openapi.json": create_api(gateway).openapi(), "asyncapi.json": asyncapi_document()}


def migration_page() -> str:
    """Return `docs/v1-migration.md` as HTML, without links to pages that gateways do not serve."""
    text = RELATIVE_LINK.sub(r"\1", (PROJECT / "docs/v1-migration.md").read_text())
    content = MarkdownIt("commonmark").enable("table").render(text)
    title = text.partition("\n")[0].removeprefix("# ").replace("`", "")
    return f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title>\n{content}</html>\n"


def kept(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


if __name__ == "__main__":
    docs_page.MIGRATION_PAGE.write_text(migration_page())
    for name, document in documents().items():
        (FOLDER / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
