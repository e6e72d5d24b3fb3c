"""The OpenAPI document and the page that shows it."""

import re
from base64 import b64encode
from datetime import datetime
from hashlib import sha256
from typing import Any

import httpx
import pytest
from notify_gateway.http.problem_codes import DESCRIPTIONS, STATUS, ProblemCode
from support.gateway import Json, post, soon
from support.servers import PROJECT

OPEN_CHANNEL = [{"$ref": "#/components/schemas/Channel"}, {"type": "string"}]


async def test_docs_page_loads_nothing_from_other_hosts(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/assets/{asset}" in page
        assert (await api.get(f"/docs/assets/{asset}")).status_code == 200


async def test_docs_page_runs_no_script_but_its_own(api: httpx.AsyncClient) -> None:
    response = await api.get("/docs")
    policy = dict(rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["connect-src"] == "'self'"
    assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}


async def test_description_names_files_of_the_repository_and_pages_of_the_gateway(api: httpx.AsyncClient) -> None:
    text = (await api.get("/openapi.json")).json()["info"]["description"]
    files = re.findall(r"^- `([^`]+)`", text, re.MULTILINE)
    assert {"clients/python", "docs/cli.md", "docs/recipes.md"} <= set(files)
    assert all((PROJECT / file).exists() for file in files)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {(await api.get(link)).status_code for link in links} == {200}


async def test_openapi_document_has_valid_examples_and_the_problem_schema(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    posting = document["paths"]["/api/notifications"]["post"]
    examples = posting["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        await post(api, **{"type": None, **example["value"]})
    assert posting["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")
    assert {"Problem", "FieldProblem"} <= set(document["components"]["schemas"])


async def test_every_body_of_v1_has_valid_examples(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if not path.startswith("/v1/") or "requestBody" not in operation:
                continue
            for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items():
                url = path.format(user_id="123", channel="email")
                response = await api.request(method, url, json=example["value"])
                assert response.is_success, (url, name, response.text)


async def test_responses_of_v1_are_no_unions_and_have_no_nulls(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    seen: set[str] = set()

    def alternatives(schema: Any, where: str) -> list[str]:
        """Return where there is a choice; a channel may be one that the version of the document does not know."""
        if isinstance(schema, list):
            return [found for each in schema for found in alternatives(each, where)]
        if not isinstance(schema, dict):
            return []
        reference = schema.get("$ref", "").rpartition("/")[2]
        if reference and reference not in seen:
            seen.add(reference)
            return alternatives(schemas[reference], reference)
        if {"anyOf", "oneOf"} & schema.keys() and schema.get("anyOf") != OPEN_CHANNEL:
            return [where]
        return [found for name, each in schema.items() for found in alternatives(each, f"{where}.{name}")]

    responses = {
        f"{method} {path}": operation["responses"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/v1/")
    }
    assert [found for where, each in responses.items() for found in alternatives(each, where)] == []
    assert {"Notification", "StoredOverrides", "ServiceOverview"} <= seen


async def test_events_match_the_schema_of_the_document(api: httpx.AsyncClient) -> None:
    schema = (await api.get("/openapi.json")).json()["components"]["schemas"]["StatusEvent"]
    assert {"delivery_id", "user_id", "status", "changed_at"} <= set(schema["required"])
    assert "error_class" not in schema["required"]


def test_every_problem_code_is_described_and_has_a_status() -> None:
    assert set(ProblemCode) == set(DESCRIPTIONS) == set(STATUS)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("post", "/v1/notifications", "idempotency_key_reused"),
        ("post", "/v1/notifications", "overloaded"),
        ("post", "/v1/notifications/{id}/cancel", "not_cancellable"),
        ("post", "/v1/deliveries/{id}/retry", "not_retryable"),
        ("post", "/v1/retries", "too_many_retry_jobs"),
        ("get", "/v1/deliveries", "too_many_in_progress"),
        ("get", "/v1/deliveries", "query_timed_out"),
    ],
)
async def test_codes_of_problems_are_documented(api: httpx.AsyncClient, method: str, path: str, code: str) -> None:
    responses = (await api.get("/openapi.json")).json()["paths"][path][method]["responses"]
    assert f"`{code}`" in responses[str(STATUS[ProblemCode(code)])]["description"]


async def test_fields_of_bodies_accept_only_documented_types(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    time = soon(minutes=1)
    seconds = datetime.fromisoformat(time).timestamp()
    values: Json = {"null": None, "boolean": True, "number": seconds, "string": time, "array": []}

    def resolved(schema: Any) -> Any:
        name = schema.get("$ref", "").rpartition("/")[2]
        return document["components"]["schemas"][name] if name else schema

    def types(schema: Any) -> set[str]:
        if "anyOf" in schema:
            return {found for each in schema["anyOf"] for found in types(each)}
        type_ = resolved(schema)["type"]
        return {"number" if type_ == "integer" else type_}

    rejected: list[tuple[str, ...]] = []
    accepted: list[tuple[str, ...]] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "requestBody" not in operation:
                continue
            content = operation["requestBody"]["content"]["application/json"]
            example: Json = next((each["value"] for each in content.get("examples", {}).values()), {})
            url = path.format(user_id="123", channel="email")
            for name, schema in resolved(content["schema"])["properties"].items():
                for type_ in values.keys() - types(schema):
                    response = await api.request(method, url, json={**example, name: values[type_]})
                    fields = {problem["field"].partition(".")[0] for problem in response.json().get("errors", [])}
                    found = rejected if response.status_code == 422 and name in fields else accepted
                    found.append((method, path, name, type_))
    assert accepted == []
    assert ("post", "/v1/notifications", "expires_at", "number") in rejected
