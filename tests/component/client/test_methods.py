"""Every method of both clients, against a real gateway."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from notify_client import (
    AsyncClient,
    AuthenticationFailed,
    Conflict,
    IdempotencyKeyReused,
    InvalidRequest,
    NotCancellable,
    NotFound,
    PermissionDenied,
    WaitTimedOut,
)
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.errors import PermanentFailure
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import ApiKeyStore
from sqlalchemy.ext.asyncio import AsyncEngine
from support.client import KINDS, connected
from support.fakes import FakeProvider
from support.gateway import bootstrap_key
from support.services import NOWHERE, TIMEOUT, running_sender, running_status_writer, served_gateway

KEY = bootstrap_key(1)
LATER = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture(params=KINDS)
async def client(
    request: pytest.FixtureRequest, postgres: PostgresSettings, engine: AsyncEngine
) -> AsyncIterator[AsyncClient]:
    """A client, with all rights, of a gateway that accepts notifications but never publishes them."""
    await ApiKeyStore(engine).ensure_bootstrap_key(KEY)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url,
        connected(request.param, url, KEY) as client,
    ):
        yield client


async def test_created_notification_can_be_read_and_found(client: AsyncClient) -> None:
    created = await client.notifications.create(
        user_id="ü 1",
        channels=["telegram", "email"],
        message="Your order has left.",
        subject="Order",
        to={"email": "a@example.org"},
        overrides={"email": {"html": "<p>Left.</p>"}},
        reference="order-5512",
        metadata={"order": "5512"},
        expires_at=LATER,
    )
    assert (created.status, {each.channel for each in created.deliveries}) == ("pending", {"email", "telegram"})
    read = await client.notifications.get(created.id)
    assert (read.id, read.user_id, read.message, read.metadata) == (
        created.id, "ü 1", "Your order has left.", {"order": "5512"},
    )  # fmt: skip
    assert read.expires_at == LATER.replace(microsecond=read.expires_at.microsecond) if read.expires_at else False
    assert read.overrides is not None
    assert read.overrides.email.html == "<p>Left.</p>"
    assert not read.is_final
    found = [each async for each in client.notifications.list(reference="order-5512", metadata={"order": "5512"})]
    assert [(each.id, each.message) for each in found] == [(created.id, None)]
    [expanded] = [each async for each in client.notifications.list(user_id="ü 1", expand=["content"])]
    assert expanded.message == "Your order has left."
    assert [each async for each in client.notifications.list(user_id="ü 1", status="sent", channel="email")] == []


async def test_list_continues_over_all_pages(client: AsyncClient) -> None:
    created = [
        (await client.notifications.create(user_id="1", channels=["email"], message=str(n))).id for n in range(5)
    ]
    listed = [each.id async for each in client.notifications.list(user_id="1", page_size=2)]
    assert listed == created[::-1]
    deliveries = [each async for each in client.deliveries.list(user_id="1", page_size=2)]
    assert {each.notification_id for each in deliveries} == set(created)
    assert len(deliveries) == 5


async def test_wait_ends_with_the_notification_as_it_is(client: AsyncClient) -> None:
    created = await client.notifications.create(user_id="1", channels=["email"], message="m")
    with pytest.raises(WaitTimedOut, match=str(created.id)) as raised:
        await client.notifications.wait(created.id, timeout=0.3)
    assert raised.value.notification.id == created.id


async def test_scheduled_notification_can_be_cancelled(client: AsyncClient) -> None:
    created = await client.notifications.create(user_id="1", channels=["email"], message="m", send_at=LATER)
    cancelled = await client.notifications.cancel(created.id)
    assert (cancelled.status, cancelled.deliveries[0].reason) == ("cancelled", "requested")
    assert await client.notifications.wait(created.id) == cancelled


async def test_channels_of_users_can_be_stored_read_and_deleted(client: AsyncClient) -> None:
    stored = await client.users.set("1", "email", recipient="a@example.org")
    assert stored is not None
    assert (stored.recipient, stored.opted_out) == ("a@example.org", False)
    opted_out = await client.users.set("1", "email", opted_out=True)
    assert opted_out is not None
    assert (opted_out.recipient, opted_out.opted_out) == ("a@example.org", True)
    assert await client.users.get("1", "email") == opted_out
    assert [each async for each in client.users.list("1")] == [opted_out]
    await client.users.delete("1", "email")
    without = await client.users.set("1", "email", opted_out=False, recipient=None)
    assert without is not None
    assert (without.recipient, without.opted_out) == (None, False)
    with pytest.raises(NotFound) as raised:
        await client.users.delete("1", "email")
    assert (raised.value.status, raised.value.code) == (404, "not_found")


async def test_keys_can_be_created_listed_and_revoked(client: AsyncClient) -> None:
    created = await client.keys.create(name="checkout", scopes=["send", "recipients:write"], expires_at=LATER)
    assert created.token.startswith("ntf_")
    assert created.id in [each.id async for each in client.keys.list(page_size=1)]
    await client.keys.revoke(created.id)
    [key] = [each async for each in client.keys.list() if each.id == created.id]
    assert key.revoked_at is not None
    with pytest.raises(NotFound):
        await client.keys.revoke(created.id)


async def test_operators_see_the_overview(client: AsyncClient) -> None:
    overview = await client.overview()
    assert {each.channel for each in overview.channels} == {"telegram", "email", "webhook"}
    assert not overview.rabbitmq_connected
    assert (await client.links()).rabbitmq is None


async def test_errors_are_typed(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest) as invalid:
        await client.notifications.create(user_id="1", channels=["pigeon"], message=" ")
    assert (invalid.value.code, invalid.value.status) == ("invalid_request", 422)
    assert {each.field for each in invalid.value.errors} == {"channels.0", "message"}
    assert (invalid.value.request_id or "").startswith("req_")
    await client.notifications.create(user_id="1", channels=["email"], message="m", idempotency_key="k")
    with pytest.raises(IdempotencyKeyReused):
        await client.notifications.create(user_id="1", channels=["email"], message="other", idempotency_key="k")
    with pytest.raises(NotFound):
        await client.notifications.get(uuid4())
    with pytest.raises(NotFound):
        await client.retries.get(uuid4())


@pytest.mark.parametrize("kind", KINDS)
async def test_key_without_rights_gets_typed_errors(kind: str, postgres: PostgresSettings, engine: AsyncEngine) -> None:
    await ApiKeyStore(engine).ensure_bootstrap_key(KEY)
    async with (
        served_gateway(NOWHERE, postgres, relaying=False, settings={"auth": "on"}) as url,
        connected(kind, url, KEY) as admin,
    ):
        created = await admin.keys.create(scopes=["recipients:write"])
        async with connected(kind, url, created.token) as writer:
            # Without `recipients:read`, what is stored is not returned.
            assert await writer.users.set("1", "email", recipient="a@example.org") is None
            with pytest.raises(PermissionDenied) as forbidden:
                await writer.notifications.create(user_id="1", channels=["email"], message="m")
            assert forbidden.value.code == "forbidden"
        async with connected(kind, url, "ntf_unknown") as stranger:
            with pytest.raises(AuthenticationFailed):
                await stranger.notifications.get(uuid4())


async def reject(request: DeliveryRequested) -> str:
    if request.content.message == "reject":
        raise PermanentFailure("blocked")
    return "sent"


@pytest.mark.parametrize("kind", KINDS)
async def test_deliveries_are_followed_and_retried(
    kind: str, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_sender(rabbit, FakeProvider(reject), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
        connected(kind, url) as client,
    ):
        created = await client.notifications.create(user_id="1", channels=["email"], message="m")
        sent = await client.notifications.wait(created.id, timeout=TIMEOUT)
        assert (sent.status, sent.is_final) == ("sent", True)
        assert [each.outcome for each in sent.deliveries[0].attempts or ()] == ["sent"]
        with pytest.raises(NotCancellable) as finished:
            await client.notifications.cancel(created.id)
        assert [each.status for each in finished.value.deliveries] == ["sent"]
        with pytest.raises(Conflict) as not_failed:
            await client.deliveries.retry(sent.deliveries[0].id)
        assert not_failed.value.code == "not_retryable"

        rejected = await client.notifications.create(user_id="1", channels=["email"], message="reject")
        failed = await client.notifications.wait(rejected.id, timeout=TIMEOUT)
        assert failed.status == "failed"
        [found] = [each async for each in client.deliveries.list(status=["failed"], error_class="permanent")]
        assert (found.notification_id, found.error_code) == (rejected.id, "blocked")
        assert (await client.retries.preview(channel="email", error_class="permanent")).count == 1
        retried = await client.deliveries.retry(found.id)
        assert (retried.round, retried.status) == (2, "pending")
        await client.notifications.wait(rejected.id, timeout=TIMEOUT)
        delivery = await client.deliveries.get(found.id)
        assert (delivery.status, [each.round for each in delivery.attempts or ()]) == ("failed", [1, 2])

        job = await client.retries.create(
            channel="email", error_class="permanent", created_after=LATER - timedelta(days=1)
        )
        assert (await client.retries.get(job.id)).id == job.id
