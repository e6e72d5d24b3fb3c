"""The documents in the folder `api` describe this version, and break no client of the released one."""

import json
import re
from copy import deepcopy
from typing import Any

import pytest
from notify_gateway.http import docs_page
from support.api_changes import breaking_changes
from support.api_documents import FOLDER, documents, kept, migration_page
from support.servers import PROJECT


@pytest.mark.parametrize("name", ["openapi.json", "asyncapi.json"])
def test_kept_document_is_current(name: str) -> None:
    current = json.loads(json.dumps(documents()[name]))
    assert kept(name) == current, "run `make api-docs`, and review the changes"


def test_migration_page_of_the_gateway_is_current() -> None:
    assert docs_page.MIGRATION_PAGE.read_text() == migration_page(), "run `make api-docs`"


def test_api_page_names_every_route() -> None:
    table = (PROJECT / "docs/api.md").read_text().partition("\n## ")[0]
    routes = re.findall(r"`((?:[A-Z]+(?:`, `)?)+) (/v1/[^`]+)`", table)
    listed = {(method, path) for methods, path in routes for method in methods.split("`, `")}
    paths = kept("openapi.json")["paths"]
    assert listed == {(method.upper(), path) for path in paths if path.startswith("/v1/") for method in paths[path]}


def test_no_change_breaks_clients_of_the_released_version() -> None:
    """Announce a breaking change in CHANGELOG.md before you write it into `api/released/breaking.txt`."""
    announced = (FOLDER / "released/breaking.txt").read_text().splitlines()
    assert sorted(breaking_changes(kept("released/openapi.json"), kept("openapi.json"))) == sorted(announced)


def _path(document: Any, *path: str) -> Any:
    for each in path:
        document = document[each]
    return document


SCHEMAS = ("components", "schemas")


@pytest.mark.parametrize(
    ("path", "change", "found"),
    [
        (("paths",), lambda paths: paths.pop("/v1/keys/{id}"), "DELETE /v1/keys/{id}: is gone"),
        (
            (*SCHEMAS, "NotificationRequest", "required"),
            lambda required: required.append("subject"),
            "POST /v1/notifications: request.subject: is required",
        ),
        (
            (*SCHEMAS, "NotificationRequest", "properties"),
            lambda properties: properties.pop("metadata"),
            "POST /v1/notifications: request.metadata: is gone",
        ),
        (
            (*SCHEMAS, "Channel", "enum"),
            lambda values: values.remove("email"),
            "POST /v1/notifications: request.channels[]: the value email is refused",
        ),
        (
            (*SCHEMAS, "CreatedNotification", "properties", "id"),
            lambda schema: schema.update(type="integer"),
            "POST /v1/notifications: 201.id: the type integer is new",
        ),
        (
            (*SCHEMAS, "CreatedNotification", "required"),
            lambda required: required.remove("status"),
            "POST /v1/notifications: 201.status: is no longer always there",
        ),
    ],
)
def test_breaking_change_is_found(path: tuple[str, ...], change: Any, found: str) -> None:
    before = kept("openapi.json")
    after = deepcopy(before)
    assert not list(breaking_changes(before, after))
    change(_path(after, *path))
    assert found in list(breaking_changes(before, after))
