"""The client repeats failed requests if that is safe, on a real connection."""

import logging
from uuid import UUID

import pytest
from notify_client import ConnectionFailed, RateLimited, TimedOut, Unavailable
from notify_database.engine import PostgresSettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.client import FORWARD, FORWARD_AND_LOSE, HANG, KINDS, LOSE, FailingServer, Reply, connected
from support.services import NOWHERE, served_gateway

BUSY = Reply(503, b"", {"Retry-After": "0"})
LIMITED = Reply(429, b"", {"Retry-After": "0"})
CREATED = Reply(
    201,
    b'{"id": "01a21794-3cc1-7d57-8220-d2098ea77790", "status": "pending", "created_at": "2026-11-26T11:18:40Z",'
    b' "deliveries": []}',
)
ID = UUID("01a21794-3cc1-7d57-8220-d2098ea77790")

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)


async def test_creation_is_repeated_with_the_same_key_until_it_succeeds(kind: str) -> None:
    server = FailingServer(BUSY, LIMITED, LOSE, CREATED)
    async with server.serving() as url, connected(kind, url) as client:
        created = await client.notifications.create(user_id="1", channels=["email"], message="m")
        await client.notifications.create(user_id="1", channels=["email"], message="m")
    assert created.id == ID
    *repeated, other = server.requests
    assert len(repeated) == 4
    assert len({(each.method, each.path, each.body, each.headers["idempotency-key"]) for each in repeated}) == 1
    assert repeated[0].headers["idempotency-key"] != other.headers["idempotency-key"]


async def test_key_and_message_are_in_no_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = FailingServer(BUSY, CREATED)
    async with server.serving() as url, connected(kind, url, "ntf_secret") as client:
        await client.notifications.create(user_id="1", channels=["email"], message="private")
    assert [each.headers["authorization"] for each in server.requests] == ["Bearer ntf_secret"] * 2
    assert "retry 1 of a POST" in caplog.text
    assert "ntf_secret" not in caplog.text
    assert "private" not in caplog.text


async def test_creation_after_a_lost_response_stores_one_notification(
    kind: str, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(FORWARD_AND_LOSE, FORWARD, gateway=gateway)
        async with server.serving() as url, connected(kind, url) as client:
            created = await client.notifications.create(user_id="1", channels=["email"], message="m")
    assert len(server.requests) == 2
    async with engine.connect() as connection:
        stored = (await connection.execute(text("SELECT id FROM notifications"))).scalars().all()
    assert stored == [created.id]


async def test_deletion_after_a_lost_response_succeeds(kind: str, postgres: PostgresSettings) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as gateway:
        server = FailingServer(FORWARD, FORWARD_AND_LOSE, FORWARD, gateway=gateway)
        async with server.serving() as url, connected(kind, url) as client:
            await client.users.set("1", "email", recipient="a@example.org")
            await client.users.delete("1", "email")
    assert [each.method for each in server.requests] == ["PUT", "DELETE", "DELETE"]


async def test_request_is_given_up_after_the_allowed_retries(kind: str) -> None:
    server = FailingServer(BUSY)
    async with server.serving() as url, connected(kind, url, max_retries=2) as client:
        with pytest.raises(Unavailable) as raised:
            await client.notifications.get(ID)
    assert (len(server.requests), raised.value.code, raised.value.retry_after) == (3, "http_503", 0)


async def test_long_wait_is_left_to_the_caller(kind: str) -> None:
    server = FailingServer(Reply(429, b"", {"Retry-After": "3600"}))
    async with server.serving() as url, connected(kind, url) as client:
        with pytest.raises(RateLimited) as raised:
            await client.notifications.get(ID)
    assert (len(server.requests), raised.value.retry_after) == (1, 3600)


async def test_retry_of_a_delivery_is_not_repeated_if_it_may_have_started(kind: str) -> None:
    for lost in (LOSE, BUSY):
        server = FailingServer(lost)
        async with server.serving() as url, connected(kind, url) as client:
            with pytest.raises((ConnectionFailed, Unavailable)):
                await client.deliveries.retry(ID)
            with pytest.raises((ConnectionFailed, Unavailable)):
                await client.retries.create(channel="email")
            with pytest.raises((ConnectionFailed, Unavailable)):
                await client.keys.create(scopes=["send"])
        assert len(server.requests) == 3


async def test_retry_of_a_delivery_is_repeated_if_the_gateway_refused_it(kind: str) -> None:
    progress = Reply(
        202, b'{"id": "01a21794-3cc1-7d57-8220-d2098ea77790", "retried": 0, "created_at": "2026-11-26T11:18:40Z"}'
    )
    server = FailingServer(LIMITED, progress)
    async with server.serving() as url, connected(kind, url) as client:
        assert (await client.retries.create()).id == ID
    assert len(server.requests) == 2


async def test_server_that_does_not_respond_is_a_timeout(kind: str) -> None:
    server = FailingServer(HANG)
    async with server.serving() as url, connected(kind, url, timeout=0.2, max_retries=1) as client:
        with pytest.raises(TimedOut) as raised:
            await client.notifications.get(ID)
    assert raised.value.maybe_executed
    assert len(server.requests) == 2


async def test_refused_connection_is_an_error_of_its_own(kind: str) -> None:
    async with connected(kind, "http://127.0.0.1:1") as client:
        with pytest.raises(ConnectionFailed) as raised:
            await client.notifications.create(user_id="1", channels=["email"], message="m")
    assert not raised.value.maybe_executed
