import re
import tomllib
from pathlib import Path

import httpx
import pytest
from faststream.asgi import AsgiFastStream
from notify_common.runtime.health import health_app
from notify_common.version import VERSION
from notify_gateway.application import Gateway
from notify_gateway.asyncapi import asyncapi_document
from notify_gateway.http_api import create_api, create_health
from notify_gateway.settings import GatewaySettings
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp
from support.servers import PROJECT

PROJECTS = [
    PROJECT / "pyproject.toml",
    *PROJECT.glob("clients/*/pyproject.toml"),
    *PROJECT.glob("libs/*/pyproject.toml"),
    *PROJECT.glob("services/*/pyproject.toml"),
]
IMAGES = sorted(PROJECT.glob("services/*/Dockerfile"))


def gateway() -> Gateway:
    return Gateway(GatewaySettings(postgres_host="127.0.0.1", postgres_port=1))


async def readyz(app: ASGIApp | AsgiFastStream) -> dict[str, str]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        content: dict[str, str] = (await client.get("/readyz")).json()
        return content


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_every_package_has_the_product_version(project: Path) -> None:
    assert tomllib.loads(project.read_text())["project"]["version"] == VERSION


@pytest.mark.parametrize("dockerfile", IMAGES, ids=lambda path: path.parent.name)
def test_every_image_is_labelled_with_the_product_version(dockerfile: Path) -> None:
    content = dockerfile.read_text()
    assert f"ARG VERSION={VERSION}\n" in content
    assert 'org.opencontainers.image.version="$VERSION"' in content


def test_changelog_has_an_entry_for_the_current_version() -> None:
    assert re.search(rf"^## \[{re.escape(VERSION)}\]", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_api_documents_state_the_product_version() -> None:
    assert create_api(gateway()).openapi()["info"]["version"] == VERSION
    assert asyncapi_document()["info"]["version"] == VERSION


async def test_consumer_readyz_reports_the_version() -> None:
    assert (await readyz(health_app([], CollectorRegistry())))["version"] == VERSION


async def test_gateway_readyz_reports_the_version_even_when_not_ready() -> None:
    response = await readyz(create_health(gateway()))
    assert (response["status"], response["version"]) == ("not ready", VERSION)
