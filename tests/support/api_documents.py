"""`make api-docs`: write the OpenAPI and AsyncAPI documents into the folder `api`, where changes can be reviewed."""

import json
from typing import Any

from notify_gateway.application import Gateway
from notify_gateway.asyncapi import asyncapi_document
from notify_gateway.http_api import create_api
from notify_gateway.settings import GatewaySettings

from support.servers import PROJECT

FOLDER = PROJECT / "api"


def documents() -> dict[str, dict[str, Any]]:
    """Return the documents by the names of their files."""
    gateway = Gateway(GatewaySettings())
    return {"openapi.json": create_api(gateway).openapi(), "asyncapi.json": asyncapi_document()}


def kept(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


if __name__ == "__main__":
    for name, document in documents().items():
        (FOLDER / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
