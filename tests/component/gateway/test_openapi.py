"""The OpenAPI document and the page that shows it."""

import re
from base64 import b64encode
from hashlib import sha256

import httpx
from support.gateway import post


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


async def test_openapi_document_has_valid_examples_and_the_problem_schema(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    posting = document["paths"]["/api/notifications"]["post"]
    examples = posting["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        await post(api, **{"type": None, **example["value"]})
    assert posting["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")
    assert {"Problem", "FieldProblem"} <= set(document["components"]["schemas"])
