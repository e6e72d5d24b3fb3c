"""The size of an error response does not depend on how much of a request is invalid."""

import json
from typing import Any

import httpx
import pytest
from notify_gateway.http.principal import Scope
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import BODY, bearer

MANY, SOME = 20_000, 1_000
LARGEST = 10_000  # bytes
NAMES = {f"n{number}": 0 for number in range(MANY)}
POST = "/api/notifications"
CHANNEL = "/api/users/1/channels/email"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", POST, {"user_id": 1, "message": "x", "channels": [1] * SOME}, "channels"),
        ("POST", POST, {"user_id": 1, "message": "x", "channels": [1] * MANY}, "body"),
        ("POST", POST, {"user_id": 1, "message": "x", "channels": ["email"] * SOME}, "channels"),
        ("POST", POST, {"user_id": 1, "message": "x", "channels": ["email"] * MANY}, "body"),
        ("POST", POST, {"user_id": 1, "message": "x", "channels": [{}] * MANY}, "body"),
        ("POST", POST, {**BODY, "metadata": NAMES}, "body"),
        ("POST", POST, {**BODY, "recipient": NAMES}, "body"),
        ("POST", POST, {**BODY, **NAMES}, "body"),
        ("POST", "/v1/keys", {"scopes": [1] * SOME}, "scopes"),
        ("POST", "/v1/keys", {"scopes": ["read"] * SOME}, "scopes"),
        ("POST", "/v1/keys", {"scopes": [{}] * MANY}, "body"),
        ("POST", "/v1/keys", NAMES, "body"),
        ("POST", "/api/deliveries/retry", NAMES, "body"),
        ("PUT", CHANNEL, NAMES, "body"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_thousands_of_invalid_fields_are_one_error(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, method: str, path: str, body: Any, field: str
) -> None:
    response = await secured_api.request(method, path, json=body, headers=await bearer(engine, *Scope))
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert len(response.content) < LARGEST


async def test_response_lists_the_first_errors_and_counts_the_others(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = await bearer(engine, *Scope)
    unknown = {f"n{number}": 0 for number in range(50)}
    for method, path, body in (
        ("POST", POST, {**BODY, "metadata": unknown}),
        ("POST", POST, {**BODY, **unknown}),
        ("POST", "/v1/keys", {"scopes": ["read"], **unknown}),
    ):
        response = await secured_api.request(method, path, json=body, headers=headers)
        assert response.status_code == 422
        assert len(response.json()["errors"]) == 20
        assert response.json()["detail"].endswith("; and 30 more")
        assert len(response.content) < LARGEST


async def test_long_name_of_an_unknown_field_is_cut(api: httpx.AsyncClient) -> None:
    response = await api.post(POST, json={**BODY, "x" * 100_000: 0})
    assert response.json()["errors"][0]["field"] == "x" * 100 + "…"
    assert len(response.content) < LARGEST


async def test_number_of_query_parameters_is_bounded(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    headers = await bearer(engine, *Scope)
    for number, status, detail in ((50, 422, "; and 30 more"), (51, 400, "50 parameters"), (3_000, 400, "50")):
        query = "&".join(f"n{each}=" for each in range(number))
        response = await secured_api.get(f"/api/notifications?{query}", headers=headers)
        assert (response.status_code, detail in response.json()["detail"]) == (status, True)
        assert len(response.content) < LARGEST


async def test_every_list_in_a_request_has_a_greatest_length(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    lists = 0

    def check(schema: Any) -> None:
        nonlocal lists
        if isinstance(schema, list):
            for each in schema:
                check(each)
        elif isinstance(schema, dict):
            if schema.get("type") == "array":
                lists += 1
                assert "maxItems" in schema, json.dumps(schema)
            if "$ref" in schema:
                check(schemas[schema["$ref"].rpartition("/")[2]])
            for each in schema.values():
                check(each)

    for operations in document["paths"].values():
        for operation in operations.values():
            check(operation.get("requestBody"))
    assert lists == 3
