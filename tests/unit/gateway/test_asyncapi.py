"""The AsyncAPI document must match the messages and exchanges that the services use."""

import json
from typing import Any

import jsonschema_rs
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_gateway.asyncapi import asyncapi_document
from support.servers import PROJECT

DOCUMENT = json.loads(json.dumps(asyncapi_document()))
GOLDEN = sorted((PROJECT / "tests/unit/common/contracts/golden").glob("*.json"))


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [
            *([part["$ref"]] if "$ref" in part else []),
            *(ref for each in part.values() for ref in references(each)),
        ]
    return [ref for each in part for ref in references(each)] if isinstance(part, list) else []


def test_every_reference_resolves() -> None:
    found = references(DOCUMENT)
    assert found
    for reference in found:
        place = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_messages_match_their_schemas(path: Any) -> None:
    payload = DOCUMENT["components"]["messages"][path.stem]["payload"]
    message = json.loads(path.read_text())
    schema = {**payload, "components": DOCUMENT["components"]}
    jsonschema_rs.validate(schema, message)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {**message, "version": 2})


def test_every_exchange_between_services_is_documented() -> None:
    documented = {channel["bindings"]["amqp"]["exchange"]["name"] for channel in DOCUMENT["channels"].values()}
    retries, results = (
        {exchange(channel).name for channel in Channel}
        for exchange in (topology.retry_exchange, topology.results_exchange)
    )
    assert documented == {"notifications", "notifications.events", *retries, *results}
    operations = {f"send_{channel}{kind}" for channel in Channel for kind in ("", "_retry", "_results")}
    assert operations < set(DOCUMENT["operations"])
