"""Status changes are published to subscribers as soon as they are written."""

import asyncio
import time
from datetime import datetime

import httpx
import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.errors import PermanentFailure
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.http.principal import Scope
from sqlalchemy.ext.asyncio import AsyncEngine
from support.event_stream import post, reading
from support.fakes import FakeProvider
from support.servers import Servers
from support.services import (
    eventually,
    running_sender,
    running_status_writer,
    served_gateway,
)


async def event_queues(servers: Servers, rabbit: RabbitSettings) -> list[str]:
    with servers.management() as management:
        queues = management.get(f"/api/queues/{rabbit.rabbitmq_vhost}").json()
    return [queue["name"] for queue in queues if queue["name"].startswith("notifications.events.")]


async def reject_email(request: DeliveryRequested) -> str:
    if request.channel is Channel.EMAIL:
        raise PermanentFailure("blocked")
    return "sent"


async def test_subscribers_get_matching_events_from_any_gateway(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with (
        running_sender(rabbit, FakeProvider(reject_email)),
        running_sender(rabbit, FakeProvider(reject_email), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as first,
        served_gateway(rabbit, postgres) as second,
        reading(first) as (everything, live),
        reading(second, user_id=2) as (of_user, _),
        reading(second, channel="email") as (by_email, _),
    ):
        assert live
        one = await post(first)
        event = await everything.status()
        assert (event["notification_id"], event["user_id"], event["channel"]) == (one["id"], 1, "telegram")
        assert (event["status"], event["round"], event["attempt"], event["error_class"]) == ("sent", 1, 1, None)
        two = await post(first, user_id=2, type="email")
        event = await of_user.status()
        assert event == await by_email.status() == await everything.status()
        assert (event["delivery_id"], event["status"]) == (two["deliveries"][0]["id"], "failed")
        assert (event["error_class"], event["error_code"]) == ("permanent", "blocked")
        async with (
            reading(second, notification_id=two["id"]) as (of_two, _),
            httpx.AsyncClient(base_url=first) as client,
        ):
            # The API reports the same time as the event.
            stored = (await client.get(f"/api/notifications/{two['id']}")).json()
            assert stored["deliveries"][0]["updated_at"] == event["changed_at"]
            await everything.until(await post(first))
            assert (await client.post(f"/api/deliveries/{event['delivery_id']}/retry")).status_code == 202
            again = [await of_two.status() for _ in range(2)]
        assert [(each["status"], each["round"], each["attempt"]) for each in again] == [
            ("pending", 2, 1),
            ("failed", 2, 2),
        ]


async def test_event_queue_exists_only_while_there_are_subscribers(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    async with served_gateway(rabbit, postgres) as url:
        assert await event_queues(servers, rabbit) == []
        async with reading(url), reading(url, user_id=1):

            async def one() -> bool:
                return len(await event_queues(servers, rabbit)) == 1

            await eventually(one, "all subscribers share one queue")

        async def none() -> bool:
            return not await event_queues(servers, rabbit)

        await eventually(none, "the event queue is deleted")


async def test_tenants_do_not_get_each_others_events(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    keys = {}
    for tenant in ("ours", "theirs"):
        _, token = await ApiKeyStore(engine).create(tenant, "test", frozenset({Scope.SEND, Scope.READ}))
        keys[tenant] = {"Authorization": f"Bearer {token}"}
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres, settings={"auth": "on"}) as url,
        reading(url, keys["ours"]) as (ours, _),
        reading(url, keys["theirs"]) as (theirs, _),
    ):
        foreign = await post(url, keys["theirs"])
        async with reading(url, keys["ours"], notification_id=foreign["id"]) as (guessing, _):
            assert (await theirs.status())["notification_id"] == foreign["id"]
            own = await post(url, keys["ours"])
            assert (await ours.status())["notification_id"] == own["id"]
            begin = str(int((time.time() - 60) * 1e6))
            async with reading(url, {**keys["ours"], "Last-Event-ID": begin}) as (replayed, _):
                assert (await replayed.status())["notification_id"] == own["id"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):  # all events have been published by now
                    await guessing.status()


@pytest.mark.parametrize("query", ["?user_id=0", "?last_event_id=x", "?channel=fax", "?nothing=1"])
async def test_invalid_event_filter_is_rejected(api: httpx.AsyncClient, query: str) -> None:
    response = await api.get(f"/api/events{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] in query


async def test_event_id_is_the_time_of_the_change(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
        reading(url) as (reader, _),
    ):
        await post(url)
        event = await reader.status()
    assert datetime.fromisoformat(event["changed_at"]).timestamp() == pytest.approx(int(event["id"]) / 1e6, abs=1e-6)
