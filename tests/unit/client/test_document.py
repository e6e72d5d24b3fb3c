"""The client has what the OpenAPI document has: every operation, every parameter and every field, with its type."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_args
from uuid import UUID

import pytest
from notify_client import errors, models, overview, subscription
from notify_client.models import Model
from notify_client.requests import Request
from notify_client.resources import deliveries, events, keys, notifications, operator, retries, users
from pydantic import TypeAdapter
from support.servers import PROJECT

Json = dict[str, Any]
DOCUMENT: Json = json.loads((PROJECT / "api/openapi.json").read_text())
SCHEMAS: Json = DOCUMENT["components"]["schemas"]
ID = UUID("01a21794-3cc1-7d57-8220-d2098ea77790")
OPERATIONS: dict[str, tuple[Callable[..., Request[Any]], tuple[object, ...]]] = {
    "create_notification": (notifications.create_notification, ()),
    "list_notifications": (notifications.list_notifications, ()),
    "get_notification": (notifications.get_notification, (ID,)),
    "cancel_notification": (notifications.cancel_notification, (ID,)),
    "list_deliveries": (deliveries.list_deliveries, ()),
    "get_delivery": (deliveries.get_delivery, (ID,)),
    "retry_delivery": (deliveries.retry_delivery, (ID,)),
    "start_retries": (retries.start_retries, ()),
    "preview_retries": (retries.preview_retries, ()),
    "get_retry_job": (retries.get_retry_job, (ID,)),
    "list_user_channels": (users.list_user_channels, ("1",)),
    "get_user_channel": (users.get_user_channel, ("1", "email")),
    "put_user_channel": (users.set_user_channel, ("1", "email")),
    "delete_user_channel": (users.delete_user_channel, ("1", "email")),
    "stream_events": (events.stream_events, ()),
    "create_key": (keys.create_key, ()),
    "list_keys": (keys.list_keys, ()),
    "revoke_key": (keys.revoke_key, (ID,)),
    "get_overview": (operator.get_overview, ()),
    "get_links": (operator.get_links, ()),
}
EXAMPLES: dict[str, Json] = {
    "create_notification": {"user_id": "1", "channels": ["email"], "message": "m"},
    "create_key": {"scopes": ["send"]},
}
RENAMED = {"limit": "page_size"}
ELSEWHERE = {"last_event_id"}  # `client.events.stream` has it
ADDED = {"create_notification": {"idempotency_key"}}
RESPONSES = {
    **{
        name: kind
        for name, kind in [*vars(models).items(), *vars(overview).items()]
        if name in SCHEMAS and isinstance(kind, type) and name != "Problem"  # the one of the older API
    },
    "ProblemDetails": models.Problem,
}
PAGES = {"NotificationPage", "DeliveryPage", "UserChannelPage", "KeyPage"}
NAMES = {
    "Channel": models.Channel,
    "NotificationStatus": models.NotificationStatus,
    "DeliveryStatus": models.DeliveryStatus,
    "CancelReason": models.CancelReason,
    "Outcome": models.Outcome,
    "ErrorClass": models.ErrorClass,
    "Scope": models.Scope,
    "Expansion": models.Expansion,
}
REQUESTS = {"Recipients": notifications.Recipients, "EmailOptions": notifications.EmailOptions,
            "Overrides": notifications.Overrides}  # fmt: skip


def operations() -> dict[str, tuple[str, str, Json]]:
    """Return the method, path and description of each operation."""
    return {
        operation["operationId"]: (method.upper(), path, operation)
        for path, of_path in DOCUMENT["paths"].items()
        if path.startswith("/v1/")
        for method, operation in of_path.items()
    }


def shape(schema: Json, definitions: Mapping[str, Json]) -> object:
    """Return what a value may be: constraints, descriptions and null are left out, and references are resolved."""
    if "$ref" in schema:
        return shape(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return frozenset(schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        choices = [shape(each, definitions) for each in schema["anyOf"] if each != {"type": "null"}]
        names = [each for each in choices if isinstance(each, frozenset)]
        assert len(choices) == 1 or (names and len(choices) == 2), schema  # an open set of names is one or any text
        return (names or choices)[0]
    if schema["type"] == "array":
        return [shape(schema["items"], definitions)]
    if "properties" in schema:
        return {name: shape(each, definitions) for name, each in schema["properties"].items()}
    return schema["type"] if schema.get("format") not in {"uuid", "date-time"} else schema["format"]


def is_nullable(schema: Json) -> bool:
    return {"type": "null"} in schema.get("anyOf", [])


def test_every_operation_exists() -> None:
    assert set(OPERATIONS) == set(operations())


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_has_the_method_path_and_parameters_of_the_document(name: str) -> None:
    build, segments = OPERATIONS[name]
    request = build(*segments, **EXAMPLES.get(name, {}))
    method, path, operation = operations()[name]
    values = {"{id}": str(ID), "{user_id}": "1", "{channel}": "email"}
    for placeholder, value in values.items():
        path = path.replace(placeholder, value)
    assert (request.method, request.path) == (method, path)
    documented = {each["name"]: each for each in operation.get("parameters", []) if each["in"] in {"path", "query"}}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    fields = SCHEMAS[body["$ref"].rpartition("/")[2]] if body else {"properties": {}}
    expected = {RENAMED.get(each, each) for each in {*documented, *fields["properties"]}} - ELSEWHERE
    parameters = inspect.signature(build).parameters
    assert set(parameters) == expected | ADDED.get(name, set())
    required = {each for each, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    path_parameters = {each for each, parameter in documented.items() if parameter.get("required")}
    assert required == path_parameters | set(fields.get("required", []))


@pytest.mark.parametrize("name", OPERATIONS)
def test_query_and_body_use_the_names_of_the_document(name: str) -> None:
    build, segments = OPERATIONS[name]
    _, _, operation = operations()[name]
    optional = [each for each in inspect.signature(build).parameters.values() if each.kind is each.KEYWORD_ONLY]
    given = {each.name: {"a": "b"} if each.name == "metadata" else "x" for each in optional}
    request = build(*segments, **given)
    query = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
    assert {each for each in request.query if not each.startswith("metadata.")} == query - ELSEWHERE - {"metadata"}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(request.body or {}) == set(SCHEMAS[schema["$ref"].rpartition("/")[2]]["properties"])


def test_every_response_has_a_model() -> None:
    found: set[str] = set()
    waiting = [
        reference["schema"]["$ref"].rpartition("/")[2]
        for _, _, operation in operations().values()
        for response in operation["responses"].values()
        for reference in response.get("content", {}).values()
        if "$ref" in reference["schema"]
    ]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [part.split('"')[0] for part in json.dumps(SCHEMAS[name]).split("#/components/schemas/")[1:]]
    assert found - set(RESPONSES) - PAGES - set(NAMES) - {"ProblemCode", "CancellationProblem"} == set()


@pytest.mark.parametrize("name", RESPONSES)
def test_model_has_the_fields_of_the_document(name: str) -> None:
    model: type[Model] = RESPONSES[name]
    ours, theirs = model.model_json_schema(), SCHEMAS["CancellationProblem" if name == "ProblemDetails" else name]
    assert set(ours["properties"]) == set(theirs["properties"])
    optional = set(ours["properties"]) - set(ours.get("required", []))
    if model is not models.Problem:  # a proxy's response becomes one, too
        assert optional == set(theirs["properties"]) - set(theirs.get("required", []))
    for field, schema in theirs["properties"].items():
        if field != "code":
            assert shape(ours["properties"][field], ours.get("$defs", {})) == shape(schema, SCHEMAS), field
        assert not is_nullable(schema) or is_nullable(ours["properties"][field]), field


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_has_the_fields_of_the_document(name: str) -> None:
    item = SCHEMAS[name]["properties"]["items"]["items"]["$ref"].rpartition("/")[2]
    ours = models.Page[RESPONSES[item]].model_json_schema()  # type: ignore[valid-type]  # it is one at runtime
    expected = {"items", "has_more"} if name == "UserChannelPage" else set(ours["properties"])
    assert expected == set(SCHEMAS[name]["properties"])


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_document(name: str) -> None:
    literal, text = get_args(NAMES[name])
    assert text is str
    assert list(get_args(literal)) == SCHEMAS[name]["enum"]


@pytest.mark.parametrize("name", REQUESTS)
def test_part_of_a_request_has_the_fields_of_the_document(name: str) -> None:
    ours = TypeAdapter(REQUESTS[name]).json_schema()
    assert shape(ours, ours.get("$defs", {})) == shape(SCHEMAS[name], SCHEMAS)


def test_every_problem_code_has_a_class() -> None:
    assert set(errors.CLASSES) == set(SCHEMAS["ProblemCode"]["enum"])


def test_event_has_the_fields_that_the_gateway_sends() -> None:
    from notify_gateway.events.schemas import StatusEvent  # noqa: PLC0415 - the only test that needs the gateway

    ours, theirs = subscription.StatusEvent.model_json_schema(), StatusEvent.model_json_schema(mode="serialization")
    assert set(ours["properties"]) == {*theirs["properties"], "type"}
    for field, schema in theirs["properties"].items():
        assert shape(ours["properties"][field], {}) == shape(schema, theirs["$defs"]), field


def test_models_tolerate_what_newer_gateways_return() -> None:
    delivery = {"id": str(ID), "channel": "pigeon", "status": "lost", "updated_at": "2026-11-26T11:18:41Z", "new": 1}
    read = models.DeliverySummary.model_validate(delivery)
    assert (read.channel, read.status) == ("pigeon", "lost")
