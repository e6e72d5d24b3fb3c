"""`/v1/keys`: creating, listing and revoking the API keys of a tenant."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from notify_gateway.api_keys.store import BOOTSTRAP_ID, ApiKeyStore
from notify_gateway.api_keys.tenant_keys import MAX_VALID_KEYS, PAGE
from notify_gateway.http.principal import Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done
from support.gateway import BODY, Json, bearer, bootstrap_key, owner, rows

ADMIN = (Scope.ADMIN, Scope.SEND, Scope.READ)
SOME_ID = "01a2107e-2b08-7f6c-80e3-ee68c821945a"
ADD_KEYS = text("""
    INSERT INTO api_keys (id, tenant, name, hash, scopes, created_at)
    SELECT gen_random_uuid(), :tenant, 'one of many', sha256(CAST(CAST(number AS text) AS bytea)), '{read}', now()
    FROM generate_series(1, :number) AS number
""")
Headers = dict[str, str]


async def create(api: httpx.AsyncClient, headers: Headers | None = None, **body: object) -> Json:
    response = await api.post("/v1/keys", json={"scopes": ["read"], **body}, headers=headers)
    assert response.status_code == 201, response.text
    assert response.headers["Cache-Control"] == "no-store"
    created: Json = response.json()
    return created


async def listed(api: httpx.AsyncClient, headers: Headers | None = None) -> list[Json]:
    response = await api.get("/v1/keys", headers=headers)
    assert response.status_code == 200, response.text
    page = response.json()
    assert ("next_cursor" in page, page["has_more"]) == (False, False)
    items: list[Json] = page["items"]
    return items


def authorization(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


async def test_administrator_creates_lists_and_revokes_keys(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    admin = await bearer(engine, *ADMIN, tenant="shop")
    expires_at = "2999-01-31T00:00:00Z"
    created = await create(secured_api, admin, name="checkout", scopes=["send", "read", "send"], expires_at=expires_at)
    token = created.pop("token")
    assert token.startswith("ntf_")
    assert created == {
        "id": created["id"], "name": "checkout", "scopes": ["read", "send"], "test": False, "expires_at": expires_at,
    }  # fmt: skip
    newest, own = await listed(secured_api, admin)
    assert newest == {**created, "created_at": newest["created_at"]}
    assert own["scopes"] == ["admin", "read", "send"]
    key = authorization(token)
    posted = await secured_api.post("/api/notifications", json=BODY, headers=key)
    assert posted.status_code == 201
    [notification] = (await secured_api.get("/api/notifications", headers=admin)).json()["items"]
    assert notification["id"] == posted.json()["id"]

    assert (await secured_api.delete(f"/v1/keys/{created['id']}", headers=admin)).status_code == 204
    assert await owner(engine, token) is None
    assert "revoked_at" in (await listed(secured_api, admin))[0]
    for key_id in (created["id"], SOME_ID):
        missing = await secured_api.delete(f"/v1/keys/{key_id}", headers=admin)
        assert (missing.status_code, missing.json()["detail"]) == (404, f"There is no valid key {key_id}.")


async def test_keys_of_another_tenant_are_unknown(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    ours, theirs = [await bearer(engine, *Scope, tenant=tenant) for tenant in ("ours", "theirs")]
    created = await create(secured_api, ours)
    assert created["id"] not in [key["id"] for key in await listed(secured_api, theirs)]
    assert (await secured_api.delete(f"/v1/keys/{created['id']}", headers=theirs)).status_code == 404
    assert await owner(engine, created["token"]) is not None


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope not in ADMIN])
async def test_key_grants_only_scopes_that_it_has(
    secured_api: httpx.AsyncClient, engine: AsyncEngine, scope: Scope
) -> None:
    admin, owner = await bearer(engine, *ADMIN), await bearer(engine, *ADMIN, scope)
    body = {"scopes": ["read", scope]}
    refused = await secured_api.post("/v1/keys", json=body, headers=admin)
    assert (refused.status_code, refused.json()["detail"]) == (403, f"This key does not have the scope {scope}.")
    assert f'scope="{scope}"' in refused.headers["WWW-Authenticate"]
    assert (await secured_api.post("/v1/keys", json=body, headers=owner)).status_code == 201


async def test_expiring_key_creates_only_keys_that_expire_by_then(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    end = datetime(2999, 1, 31, tzinfo=UTC)
    _, token = await ApiKeyStore(engine).create("default", "temporary", frozenset(ADMIN), expires_at=end)
    admin = authorization(token)
    for expires_at in (None, end + timedelta(seconds=1)):
        body = {"scopes": ["read"], "expires_at": expires_at and expires_at.isoformat()}
        refused = await secured_api.post("/v1/keys", json=body, headers=admin)
        assert refused.status_code == 403
        assert refused.json()["detail"].startswith("expires_at: must not be later than 2999-01-31T00:00:00+00:00")
    for expires_at in (end, end - timedelta(days=1)):
        created = await create(secured_api, admin, expires_at=expires_at.isoformat())
        assert datetime.fromisoformat(created["expires_at"]) == expires_at


async def test_revoked_key_creates_no_keys_while_gateways_still_accept_it(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Otherwise, a stolen key could replace itself in the seconds before all gateways notice its revocation."""
    admin = await bearer(engine, *ADMIN)
    assert len(await listed(secured_api, admin)) == 1
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET revoked_at = now()"))
    assert (await secured_api.get("/v1/keys", headers=admin)).status_code == 200
    refused = await secured_api.post("/v1/keys", json={"scopes": ["read"]}, headers=admin)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert len(await rows(engine, "SELECT id FROM api_keys")) == 1


async def test_key_whose_revocation_is_in_progress_creates_no_keys(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    admin = await bearer(engine, *ADMIN)
    async with engine.begin() as revocation:
        await revocation.execute(text("UPDATE api_keys SET revoked_at = now()"))
        creating = asyncio.create_task(secured_api.post("/v1/keys", json={"scopes": ["read"]}, headers=admin))
        await blocked_or_done(engine, creating)
    assert (await creating).status_code == 401
    assert len(await rows(engine, "SELECT id FROM api_keys")) == 1


async def test_tenant_with_too_many_valid_keys_creates_no_more_and_another_tenant_does(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Otherwise, one tenant could displace the keys of all others from the memory of the gateways."""
    ours, theirs = [await bearer(engine, *ADMIN, tenant=tenant) for tenant in ("ours", "theirs")]
    async with engine.begin() as connection:
        await connection.execute(ADD_KEYS, {"tenant": "ours", "number": MAX_VALID_KEYS - 1})
    full = await secured_api.post("/v1/keys", json={"scopes": ["read"]}, headers=ours)
    assert (full.status_code, full.json()["detail"]) == (
        409, "The tenant already has 1000 valid keys, the maximum; revoke keys that are no longer used.",
    )  # fmt: skip
    await create(secured_api, theirs)
    oldest = (await rows(engine, "SELECT id FROM api_keys WHERE name = 'one of many' ORDER BY id LIMIT 1"))[0].id
    assert (await secured_api.delete(f"/v1/keys/{oldest}", headers=ours)).status_code == 204
    await create(secured_api, ours)


@pytest.mark.parametrize("scope", list(Scope))
async def test_test_key_gets_only_scopes_without_real_effects(api: httpx.AsyncClient, scope: Scope) -> None:
    response = await api.post("/v1/keys", json={"scopes": ["read", scope], "test": True})
    if scope in (Scope.SEND, Scope.READ, Scope.RECIPIENTS_READ):
        assert response.status_code == 201
        assert response.json()["test"]
        assert response.json()["token"].startswith("ntf_test_")
    else:
        assert response.status_code == 422
        [error] = response.json()["errors"]
        assert (error["field"], error["detail"]) == ("scopes", f"a test key cannot have the scope {scope}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"scopes": ["read"], "expires_at": "2999-01-31"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "1999-12-31T00:00:00Z"}, "expires_at"),
        ({"scopes": ["read"], "test": "yes"}, "test"),
        ({"scopes": ["read"], "name": "x" * 201}, "name"),
        ({"scopes": ["read"], "name": "a\x00b"}, "name"),
        ({"scopes": ["read"], "name": "\x1b[2J"}, "name"),
        ({"scopes": ["read"], "name": "a\u2028b"}, "name"),
        ({"scopes": ["read"], "name": "a\u202eb"}, "name"),
        ({"scopes": ["read"], "name": "a\u2066b"}, "name"),
        ({"scopes": ["read"], "tenant": "theirs"}, "tenant"),
    ],
    ids=repr,
)
async def test_invalid_key_is_refused(api: httpx.AsyncClient, engine: AsyncEngine, body: Json, field: str) -> None:
    response = await api.post("/v1/keys", json=body)
    assert response.status_code == 422
    assert {error["field"] for error in response.json()["errors"]} == {field}
    assert await ApiKeyStore(engine).list() == []


async def test_key_may_revoke_itself_and_the_bootstrap_key(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    await keys.ensure_bootstrap_key(bootstrap_key(1))
    admin = await create(secured_api, authorization(bootstrap_key(1)), scopes=["admin"])
    for key_id in (BOOTSTRAP_ID, admin["id"]):
        response = await secured_api.delete(f"/v1/keys/{key_id}", headers=authorization(admin["token"]))
        assert response.status_code == 204
    assert [key.revoked_at is None for key in await keys.list()] == [False, False]


async def test_without_authentication_keys_of_the_default_tenant_are_managed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    created = await create(api, scopes=list(Scope))
    principal = await owner(engine, created["token"])
    assert principal is not None
    assert (principal.tenant, principal.scopes) == ("default", frozenset(Scope))
    assert [key["id"] for key in await listed(api)] == [created["id"]]
    assert (await api.delete(f"/v1/keys/{created['id']}")).status_code == 204


async def test_pages_of_keys_are_newest_first_without_gaps(api: httpx.AsyncClient) -> None:
    created = [(await create(api, name=str(number)))["id"] for number in range(5)]
    found: list[str] = []
    sizes: list[int] = []
    for page in await _pages(api, limit=2):
        found += [key["id"] for key in page["items"]]
        sizes.append(len(page["items"]))
        assert page["has_more"] == ("next_cursor" in page)
    assert (found, sizes) == (created[::-1], [2, 2, 1])
    for limit in (0, 201):
        assert (await api.get("/v1/keys", params={"limit": limit})).status_code == 422


async def _pages(api: httpx.AsyncClient, *, limit: int) -> Iterable[Json]:
    pages: list[Json] = []
    cursor: Json = {}
    while not pages or pages[-1]["has_more"]:
        pages.append((await api.get("/v1/keys", params={"limit": limit, **cursor})).json())
        cursor = {"cursor": pages[-1].get("next_cursor")}
    return pages


async def test_operation_ids_of_the_key_routes_are_their_names(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]
    assert {
        operation["operationId"]
        for path, operations in paths.items()
        if path.startswith("/v1/keys")
        for operation in operations.values()
    } == {"create_key", "list_keys", "revoke_key"}


async def test_keys_of_other_tenants_do_not_slow_down_a_page(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(ADD_KEYS, {"tenant": "large", "number": 10_000})
        await connection.execute(text("ANALYZE api_keys"))
        values = {"tenant": "small", "cursor": None, "limit": 51}
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {PAGE.text}"), values)).scalars())
    assert "api_keys_tenant_id_idx" in plan
