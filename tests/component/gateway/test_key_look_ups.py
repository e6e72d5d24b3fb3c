"""Looking up API keys: how many statements this takes, and what happens while unknown keys flood the gateway."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import HTTPException
from notify_database.engine import PostgresSettings
from notify_database.errors import DatabaseUnavailable
from notify_gateway.api_keys.look_up import CACHE_SECONDS, CACHED_KEYS, REJECTED_SECONDS, ApiKeyLookUp
from notify_gateway.api_keys.shared_rate_limits import SharedRateLimits
from notify_gateway.api_keys.store import PREFIX, ApiKeyStore, key_hash
from notify_gateway.api_keys.upkeep import UPKEEP_INTERVAL, KeyUpkeep
from notify_gateway.application import Gateway
from notify_gateway.http.authentication import Authenticator
from notify_gateway.http.client_address import ClientAddresses
from notify_gateway.http.failure_limit import BURST
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.http.rate_limit import RequestRateLimiter
from notify_gateway.http_api import create_app
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done, waiting_for_locks
from support.gateway import bearer, rows
from support.services import NOWHERE, eventually, running_gateway, working_gateway

LOCK = text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
READ = frozenset({Scope.READ})


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def unknown_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def queries_of_keys(engine: AsyncEngine) -> list[str]:
    """Return a list to which each later query of the API keys is added."""
    queries: list[str] = []

    def record(_: object, __: object, statement: str, *___: object) -> None:
        if "FROM api_keys" in statement:
            queries.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", record)
    return queries


@asynccontextmanager
async def hidden_keys(engine: AsyncEngine) -> AsyncIterator[None]:
    """Make every statement about API keys fail."""
    async with engine.begin() as rename:
        await rename.execute(text("ALTER TABLE api_keys RENAME TO hidden"))
    yield
    async with engine.begin() as rename:
        await rename.execute(text("ALTER TABLE hidden RENAME TO api_keys"))


async def knows(gateway: Gateway, token: str) -> None:
    """Wait until the gateway has read which keys are valid."""

    async def knows_the_key() -> bool:
        return not gateway.key_look_up.is_new(token)

    await eventually(knows_the_key, "the gateway has read which keys are valid")


async def test_flood_of_unknown_keys_does_not_delay_the_refresh_of_a_known_key(engine: AsyncEngine) -> None:
    keys, clock = ApiKeyStore(engine), Clock()
    look_up = ApiKeyLookUp(keys.principals, clock)
    _, token = await keys.create("default", "", READ)
    assert await look_up.look_up(token) is not None
    clock.now += CACHE_SECONDS
    assert look_up.cached(token) is None
    async with engine.begin() as lock:
        await lock.execute(LOCK)
        unknown = [asyncio.create_task(look_up.look_up(unknown_token())) for _ in range(900)]
        while not await waiting_for_locks(engine):
            pass
        known = asyncio.create_task(look_up.look_up(token))
        while await waiting_for_locks(engine) < 2:  # one statement each for the unknown and the known keys
            pass
    assert await known is not None
    assert not all(task.done() for task in unknown)
    assert set(await asyncio.gather(*unknown)) == {None}


async def test_flood_of_unknown_keys_does_not_evict_valid_ones(engine: AsyncEngine) -> None:
    keys, clock = ApiKeyStore(engine), Clock()
    look_up = ApiKeyLookUp(keys.principals, clock)
    _, token = await keys.create("default", "", READ)
    assert await look_up.look_up(token) is not None
    for _ in range(CACHED_KEYS // 500 + 1):
        await asyncio.gather(*(look_up.look_up(unknown_token()) for _ in range(500)))
    assert look_up.cached(token) is not None


async def test_keys_of_one_tenant_do_not_evict_those_of_another() -> None:
    """A tenant can use and revoke any number of keys, although only 1,000 may be valid at a time."""

    async def find(hashes: Sequence[bytes]) -> dict[bytes, Principal]:
        return {hashed: Principal("key", "small" if hashed in small else "large", READ) for hashed in hashes}

    tokens = [unknown_token() for _ in range(10)]
    small = {key_hash(token) for token in tokens}
    look_up = ApiKeyLookUp(find)
    await asyncio.gather(*(look_up.look_up(token) for token in tokens))
    newest = [unknown_token() for _ in range(CACHED_KEYS + 100)]
    for start in range(0, len(newest), 100):
        await asyncio.gather(*(look_up.look_up(token) for token in newest[start : start + 100]))
    assert not any(look_up.is_new(token) for token in tokens)
    assert sum(look_up.is_new(token) for token in newest) == 100 + len(tokens)
    assert look_up.is_new(newest[0])
    assert not look_up.is_new(newest[-1])


async def test_concurrent_requests_with_the_same_key_share_one_look_up(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    _, token = await keys.create("default", "", READ)
    look_up, queries = ApiKeyLookUp(keys.principals), queries_of_keys(engine)
    owners = await asyncio.gather(*(look_up.look_up(token) for _ in range(2_000)))
    assert len(set(owners)) == 1
    assert owners[0] is not None
    assert len(queries) == 1


async def test_request_that_is_cancelled_does_not_cancel_the_look_up_for_others(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    _, token = await keys.create("default", "", READ)
    look_up = ApiKeyLookUp(keys.principals)
    first, second = (asyncio.create_task(look_up.look_up(token)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is not None


async def test_rejected_key_is_not_looked_up_again_at_once_but_works_soon_after_its_creation(
    engine: AsyncEngine,
) -> None:
    keys, clock, token = ApiKeyStore(engine), Clock(), "a" * 43
    look_up, queries = ApiKeyLookUp(keys.principals, clock), queries_of_keys(engine)
    assert [await look_up.look_up(token) for _ in range(3)] == [None] * 3
    assert len(queries) == 1
    await keys.ensure_bootstrap_key(token)
    clock.now += REJECTED_SECONDS
    assert await look_up.look_up(token) is not None
    assert REJECTED_SECONDS <= 5


async def test_revoked_key_is_rejected_after_the_cache_expires_and_then_counts_as_new(engine: AsyncEngine) -> None:
    keys, clock = ApiKeyStore(engine), Clock()
    look_up = ApiKeyLookUp(keys.principals, clock)
    key_id, token = await keys.create("default", "", READ)
    assert await look_up.look_up(token) is not None
    await keys.revoke(key_id)
    clock.now += CACHE_SECONDS
    assert not look_up.is_new(token)
    assert look_up.cached(token) is None
    assert await look_up.look_up(token) is None
    assert look_up.is_new(token)
    assert CACHE_SECONDS <= 5  # the documentation promises that a revoked key stops working within 5 s


async def test_failed_look_up_is_not_remembered(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    _, token = await keys.create("default", "", READ)
    look_up = ApiKeyLookUp(keys.principals)
    async with hidden_keys(engine):
        with pytest.raises(DatabaseUnavailable):
            await look_up.look_up(token)
    assert await look_up.look_up(token) is not None


async def test_malformed_key_gets_401_without_a_look_up(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api, engine.begin() as lock:
        await lock.execute(LOCK)
        for token in ("", "ntf_short", "a" * 42, "a" * 201, "a" * 43 + "!", "a" * 43 + " b", "é" * 50):
            headers = {"Authorization": f"Bearer {token}".encode("latin-1")}
            response = await api.get("/api/notifications", headers=headers)  # type: ignore[arg-type]  # bytes are allowed
            assert response.status_code == 401, token


async def test_too_many_unknown_keys_from_one_address_get_429_before_any_look_up(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        known = await bearer(engine, Scope.READ)
        assert (await api.get("/api/notifications", headers=known)).status_code == 200
        async with engine.begin() as lock:
            await lock.execute(LOCK)  # look-ups wait
            guesses = [
                asyncio.create_task(api.get("/api/notifications", headers=authorization(unknown_token())))
                for _ in range(3 * BURST)
            ]
            ended = asyncio.as_completed(guesses)
            rejected = [await next(ended) for _ in range(BURST)]
        assert {(response.status_code, response.headers["Retry-After"]) for response in rejected} == {(429, "1")}
        statuses = Counter(response.status_code for response in await asyncio.gather(*guesses))
        assert statuses[401] >= BURST
        assert set(statuses) == {401, 429}
        # The client with a valid key has the same address.
        assert (await api.get("/api/notifications", headers=known)).status_code == 200


async def test_first_requests_with_a_valid_key_are_not_taken_for_guesses(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, auth="on") as api:
        known = await bearer(engine, Scope.READ)
        requests = (api.get("/api/links", headers=known) for _ in range(5 * BURST))
        assert {response.status_code for response in await asyncio.gather(*requests)} == {200}


async def test_gateway_that_starts_during_an_attack_accepts_valid_keys_from_the_same_address(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    headers = await bearer(engine, Scope.READ)
    async with working_gateway(NOWHERE, postgres, auth="on") as gateway:
        transport = httpx.ASGITransport(app=create_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as api:
            await knows(gateway, headers["Authorization"].removeprefix("Bearer "))
            statuses = Counter[int]()
            while not statuses[429]:
                guess = await api.get("/api/links", headers=authorization(unknown_token()))
                statuses[guess.status_code] += 1
            assert statuses[401] >= BURST
            assert (await api.get("/api/links", headers=headers)).status_code == 200


async def test_key_that_a_new_gateway_has_read_is_looked_up_before_it_is_accepted(engine: AsyncEngine) -> None:
    """It may have been revoked since then."""
    keys = ApiKeyStore(engine)
    key_id, token = await keys.create("default", "", READ)
    look_up = ApiKeyLookUp(keys.principals)
    look_up.remember(await keys.valid(CACHED_KEYS), 0)
    assert not look_up.is_new(token)
    await keys.revoke(key_id)
    assert look_up.cached(token) is None
    assert await look_up.look_up(token) is None


async def test_upkeep_forgets_revoked_keys_but_not_those_that_were_used_meanwhile(engine: AsyncEngine) -> None:
    keys, clock = ApiKeyStore(engine), Clock()
    look_up = ApiKeyLookUp(keys.principals, clock)
    keeper = KeyUpkeep(SharedRateLimits(engine, RequestRateLimiter(10)), keys, look_up, clock)
    (kept, _), (revoked, _) = created = [await keys.create("default", "", READ) for _ in range(2)]
    tokens = dict(created)
    for token in tokens.values():
        assert await look_up.look_up(token) is not None
    await keys.revoke(revoked)
    clock.now += 1
    await keeper.upkeep()
    assert look_up.is_new(tokens[revoked])
    assert not look_up.is_new(tokens[kept])
    since = clock.now
    clock.now += 1
    assert await look_up.look_up(tokens[kept]) is not None
    look_up.remember({}, since)
    assert not look_up.is_new(tokens[kept])
    look_up.remember({}, clock.now + 1)
    assert look_up.is_new(tokens[kept])


async def test_time_of_last_use_is_stored_without_a_write_per_request(engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    look_up = ApiKeyLookUp(keys.principals)
    _, token = await keys.create("default", "used", READ)
    await keys.create("default", "unused", READ)
    for _ in range(3):
        await look_up.look_up(token)
    await KeyUpkeep(SharedRateLimits(engine, RequestRateLimiter(10)), keys, look_up).upkeep()
    assert {key.name: key.last_used_at is not None for key in await keys.list()} == {"used": True, "unused": False}


async def test_use_between_two_rounds_of_upkeep_is_stored_even_if_one_is_late_or_fails(engine: AsyncEngine) -> None:
    keys, clock = ApiKeyStore(engine), Clock()
    look_up = ApiKeyLookUp(keys.principals, clock)
    keeper = KeyUpkeep(SharedRateLimits(engine, RequestRateLimiter(10)), keys, look_up, clock)
    _, token = await keys.create("default", "", READ)
    await keeper.upkeep()
    clock.now += 0.5
    assert await look_up.look_up(token) is not None
    clock.now += UPKEEP_INTERVAL
    async with hidden_keys(engine):
        with pytest.raises(DatabaseUnavailable):
            await keeper.upkeep()
    clock.now += UPKEEP_INTERVAL
    await keeper.upkeep()
    [key] = await rows(engine, "SELECT extract(epoch FROM now() - last_used_at) AS unused_for FROM api_keys")
    assert key.unused_for >= 2 * UPKEEP_INTERVAL


async def test_gateway_that_stops_stores_which_keys_were_used(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    keys = ApiKeyStore(engine)
    _, token = await keys.create("default", "", READ)
    async with working_gateway(NOWHERE, postgres, auth="on") as gateway:
        await knows(gateway, token)
        assert await gateway.key_look_up.look_up(token) is not None
        assert [key.last_used_at for key in await keys.list()] == [None]
    assert None not in [key.last_used_at for key in await keys.list()]


async def test_storing_the_time_of_last_use_does_not_deadlock_with_another_gateway(engine: AsyncEngine) -> None:
    keys, used = ApiKeyStore(engine), text("UPDATE api_keys SET last_used_at = now() WHERE id = :id")
    first, second = [(await keys.create("default", "", READ))[0] for _ in range(2)]
    async with engine.begin() as another_gateway:
        await another_gateway.execute(used, {"id": second})
        touching = asyncio.create_task(keys.touch({str(first): 0, str(second): 0}))
        await blocked_or_done(engine, touching)
        await another_gateway.execute(used, {"id": first})
        await touching
    assert None not in [key.last_used_at for key in await keys.list()]


async def test_failures_are_counted_by_reason(engine: AsyncEngine) -> None:
    failures: Counter[str] = Counter()
    look_up = ApiKeyLookUp(ApiKeyStore(engine).principals)
    authenticator = Authenticator(
        look_up, RequestRateLimiter(0), ClientAddresses([]), lambda reason: failures.update([reason]), enabled=True
    )
    scope = {"type": "http", "client": ("192.0.2.1", 1), "headers": []}
    for header in (None, "Basic bm90OmE=", "Bearer short", *(f"Bearer {unknown_token()}" for _ in range(BURST + 1))):
        with pytest.raises(HTTPException):
            await authenticator.authenticate(scope, header)
    assert failures == {"missing": 2, "malformed": 1, "unknown": BURST, "throttled": 1}
