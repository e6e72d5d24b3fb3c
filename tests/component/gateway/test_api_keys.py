"""API keys: creation, expiry, revocation, the bootstrap key, and the load that unknown keys cause."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.look_up import CACHE_SECONDS
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.http.principal import Scope
from notify_local.ports import Ports
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import BODY, bearer, bootstrap_key, owner
from support.processes import STOP_TIMEOUT, gateway_command, running_service
from support.services import NOWHERE, eventually, running_gateway


async def test_revoked_key_is_rejected_and_no_key_is_stored_in_plain_text(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    key_id, token = await keys.create("default", "to be revoked", frozenset({Scope.READ}))
    assert await owner(engine, token) is not None
    assert await keys.revoke(key_id)
    assert not await keys.revoke(key_id)
    assert await owner(engine, token) is None
    async with engine.connect() as connection:
        stored = (await connection.execute(text("SELECT api_keys::text FROM api_keys"))).scalar_one()
    assert token not in stored


async def test_new_bootstrap_key_replaces_the_old_one(engine: AsyncEngine) -> None:
    leaked, new = bootstrap_key(1), bootstrap_key(2)
    await ApiKeyStore(engine).ensure_bootstrap_key(leaked)
    await ApiKeyStore(engine).ensure_bootstrap_key(new)
    assert await owner(engine, leaked) is None
    assert await owner(engine, new) is not None


@pytest.mark.parametrize("is_revoked", [False, True])
async def test_gateway_refuses_to_start_if_its_bootstrap_key_already_exists(
    postgres: PostgresSettings, engine: AsyncEngine, *, is_revoked: bool
) -> None:
    keys = ApiKeyStore(engine)
    key_id, token = await keys.create("shop", "checkout", frozenset({Scope.SEND}))
    if is_revoked:
        await keys.revoke(key_id)
    before = await keys.list()
    settings = {"AUTH": "on", "BOOTSTRAP_API_KEY": token, "APP_PORT": str(Ports().free(18_700))}
    with running_service("gateway", postgres, NOWHERE, **settings) as gateway:
        _, errors = await asyncio.to_thread(gateway.communicate, timeout=STOP_TIMEOUT)
    assert gateway.returncode == 1
    assert errors.splitlines()[-1].startswith("BOOTSTRAP_API_KEY: is already the key of another entry")
    assert "Traceback" not in errors
    assert token not in errors
    assert await keys.list() == before


async def test_bootstrap_key_works_until_revoked_and_is_never_restored(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    token = bootstrap_key(1)
    headers = {"Authorization": f"Bearer {token}"}
    for _ in range(2):
        async with running_gateway(NOWHERE, postgres, auth="on", bootstrap_api_key=token) as api:

            async def is_accepted(client: httpx.AsyncClient = api) -> bool:
                return (await client.get("/api/notifications", headers=headers)).status_code == 200

            await eventually(is_accepted, "the bootstrap key is accepted")
    keys = ApiKeyStore(engine)
    [key] = await keys.list()
    await keys.revoke(key.id)
    await keys.ensure_bootstrap_key(token)
    assert await owner(engine, token) is None


async def test_operator_creates_lists_and_revokes_keys(
    secured_api: httpx.AsyncClient, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    created = await gateway_command("keys", "create", "--tenant", "shop", "--scope", "read", servers=[postgres])
    key_id, token = created.split()
    headers = {"Authorization": f"Bearer {token}"}
    assert (await secured_api.get("/api/notifications", headers=headers)).status_code == 200
    assert (await secured_api.post("/api/notifications", headers=headers, json=BODY)).status_code == 403
    [listed] = (await gateway_command("keys", "list", servers=[postgres])).splitlines()
    assert {key_id, "shop", "read", "live", "valid", "unused"} <= set(listed.split())
    assert token not in listed
    assert await gateway_command("keys", "revoke", key_id, servers=[postgres]) == ""
    assert await owner(engine, token) is None
    assert "revoked" in await gateway_command("keys", "list", servers=[postgres])
    await gateway_command("keys", "revoke", key_id, servers=[postgres], code=1)


async def test_operator_creates_a_test_key_that_expires(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    options = ["--test", "--expires", "2999-01-31", "--scope", "send", "--scope", "read", "--name", "sandbox"]
    _, token = (await gateway_command("keys", "create", *options, servers=[postgres])).split()
    assert token.startswith("ntf_test_")
    principal = await owner(engine, token)
    assert principal is not None
    assert principal.test
    [key] = await ApiKeyStore(engine).list()
    assert (key.test, key.expires_at) == (True, datetime(2999, 1, 31, tzinfo=UTC))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET last_used_at = '2026-11-25 17:21+00'"))
    [listed] = (await gateway_command("keys", "list", servers=[postgres])).splitlines()
    assert "read,send " in listed
    assert " test " in listed
    assert "valid until 2999-01-31 00:00" in listed
    assert "used 2026-11-25 17:21" in listed
    assert listed.endswith(" sandbox")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET expires_at = '2026-11-25 17:22+00'"))
    assert "expired 2026-11-25 17:22" in await gateway_command("keys", "list", servers=[postgres])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--test", "--scope", "send", "--scope", "operator"], "--scope: a test key cannot have the scope operator"),
        (["--test", "--scope", "opt-outs:clear"], "--scope: a test key cannot have the scope opt-outs:clear"),
        (["--scope", "send", "--expires", "1999-12-31"], "--expires: must be later than now"),
        (["--scope", "send", "--expires", "1970-01-01"], "--expires: "),
        (["--scope", "send", "--name", "\x1b[2J"], "--name: "),
    ],
    ids=repr,
)
async def test_invalid_key_is_refused_with_an_error_that_names_the_option(
    postgres: PostgresSettings, engine: AsyncEngine, options: list[str], error: str
) -> None:
    assert error in await gateway_command("keys", "create", *options, servers=[postgres], code=1)
    assert await ApiKeyStore(engine).list() == []


@pytest.mark.parametrize(("option", "value"), [("--expires", "tomorrow"), ("--scope", "write"), ("--tenant", "")])
async def test_malformed_option_is_a_usage_error(postgres: PostgresSettings, option: str, value: str) -> None:
    arguments = ["keys", "create", "--scope", "send", option, value]
    assert f"argument {option}: " in await gateway_command(*arguments, servers=[postgres], code=2)


async def test_expired_key_is_rejected(secured_api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    soon = utc_now() + timedelta(seconds=1)
    _, token = await ApiKeyStore(engine).create("default", "short", frozenset({Scope.READ}), expires_at=soon)
    headers = {"Authorization": f"Bearer {token}"}
    assert (await secured_api.get("/api/notifications", headers=headers)).status_code == 200

    async def is_rejected() -> bool:
        return (await secured_api.get("/api/notifications", headers=headers)).status_code == 401

    await eventually(is_rejected, "the key is rejected", timeout=CACHE_SECONDS + 5)
    expired = await secured_api.get("/api/notifications", headers=headers)
    unknown = await secured_api.get("/api/notifications", headers={"Authorization": f"Bearer ntf_{'x' * 43}"})
    # A stranger who guesses does not learn that the key was valid once.
    assert expired.json() == unknown.json()
    assert "expired" in expired.json()["detail"]


async def test_unknown_keys_do_not_use_up_the_connection_pool(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on", postgres_pool_size=5) as api:
        headers = await bearer(engine, Scope.SEND)
        assert (await api.post("/api/notifications", headers=headers, json=BODY)).status_code == 201
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"))
            unknown = [
                asyncio.create_task(api.get("/api/notifications", headers={"Authorization": f"Bearer {number:043}"}))
                for number in range(10)
            ]
            await asyncio.sleep(0)
            assert (await api.post("/api/notifications", headers=headers, json=BODY)).status_code == 201
        assert {response.status_code for response in await asyncio.gather(*unknown)} == {401}
