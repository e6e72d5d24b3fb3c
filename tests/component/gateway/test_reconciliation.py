"""After a restore of PostgreSQL, `notify-gateway reconcile` finds what it and RabbitMQ do not know of each other."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_common.sending.errors import TemporaryFailure
from notify_database.engine import PostgresSettings, create_engine
from notify_gateway.reconciliation import broker_contents
from notify_gateway.reconciliation.broker_contents import BrokerContents, DeliveryRound, read_contents
from notify_gateway.reconciliation.commands import compare
from notify_gateway.reconciliation.open_deliveries import OpenDeliveries, OpenDelivery
from pydantic import HttpUrl
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on
from support.fakes import FakeProvider
from support.gateway import post, rows
from support.processes import gateway_command
from support.roles import session
from support.servers import Servers
from support.services import delivery_requested, eventually, running_gateway, running_sender, running_status_writer
from support.stored import Stored

LONG = timedelta(hours=1)
STATES = "SELECT n.message, d.status FROM notifications n JOIN deliveries d ON d.notification_id = n.id"
DELIVERIES = "SELECT d.*, o.due_at FROM deliveries d LEFT JOIN outbox o ON o.delivery_id = d.id ORDER BY d.id"


async def fails_first(request: DeliveryRequested) -> str:
    if request.content.message == "retrying" and request.attempt == 1:
        raise TemporaryFailure("later")
    return "sent"


async def reconcile(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, *arguments: str, code: int = 0
) -> str:
    """Run `notify-gateway reconcile …` and return its output."""
    return await gateway_command(
        "reconcile", *arguments, servers=[rabbit, postgres], code=code, RABBITMQ_MANAGEMENT_URL=servers.management_url
    )


def counts(report: str) -> list[int]:
    """Return the numbers in a report."""
    return [int(number) for number in re.findall(r"^(?:RabbitMQ|PostgreSQL) +(\d+) ", report, re.MULTILINE)]


@asynccontextmanager
async def snapshot(servers: Servers, postgres: PostgresSettings) -> AsyncIterator[PostgresSettings]:
    """Copy the database as it is now, and yield the settings of the copy."""
    name = f"test_{uuid4().hex}"
    async with session(servers.postgres) as administrator:
        await administrator.execute(f"CREATE DATABASE {name} TEMPLATE {postgres.postgres_database}")
        yield postgres.model_copy(update={"postgres_database": name})
        await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def reading(postgres: PostgresSettings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(postgres, pool_size=1)
    yield engine
    await engine.dispose()


async def states(postgres: PostgresSettings) -> dict[str, str]:
    async with reading(postgres) as engine:
        return {row.message: row.status for row in await rows(engine, STATES)}


async def accept(rabbit: RabbitSettings, postgres: PostgresSettings, *messages: str, publish: bool = True) -> None:
    """Post notifications, and let the gateway publish them unless `publish` is false."""
    async with running_gateway(rabbit, postgres, relaying=publish) as api, reading(postgres) as engine:
        for message in messages:
            await post(api, message=message)

        async def published() -> bool:
            return not publish or not await rows(engine, "SELECT 1 FROM outbox")

        await eventually(published, "the notifications are published")


async def become(postgres: PostgresSettings, **wanted: str) -> None:
    """Wait until the notifications with these messages have these statuses."""

    async def reached() -> bool:
        return (await states(postgres)).items() >= wanted.items()

    await eventually(reached, f"{wanted}")


async def test_every_notification_of_before_the_restore_ends(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    provider = FakeProvider(fails_first)

    async def run_services(*messages: str, database: PostgresSettings, **wanted: str) -> None:
        async with running_sender(rabbit, provider, first_delay=LONG), running_status_writer(rabbit, database):
            await accept(rabbit, database, *messages)
            await become(database, **wanted)

    await run_services("done", "retrying", database=postgres, done="sent", retrying="retrying")
    await accept(rabbit, postgres, "published")
    await accept(rabbit, postgres, "waiting", publish=False)
    async with snapshot(servers, postgres) as restored, hand_on(rabbit) as hand:
        # What happens from now on is lost.
        await run_services("unknown", database=postgres, unknown="sent", published="sent", waiting="sent")
        async with running_sender(rabbit, provider, first_delay=LONG):
            await accept(rabbit, postgres, "reported")

            async def is_reported() -> bool:
                return await hand.depth("notifications.results.telegram") == 1

            await eventually(is_reported, "the result is in RabbitMQ")
        await accept(rabbit, postgres, "requested")

        async with reading(restored) as engine:
            before = await rows(engine, DELIVERIES)
            report = await reconcile(servers, rabbit, restored, "--list")
            assert await rows(engine, DELIVERIES) == before
        # retrying; nothing; requested; reported; nothing unreadable; waiting; published
        assert counts(report) == [1, 0, 1, 1, 0, 1, 1]
        assert "telegram 1" in report
        assert await hand.depth("notifications.telegram") == 1
        assert "1 deliveries were put back" in await reconcile(servers, rabbit, restored, "--apply")
        assert "1 deliveries were put back" not in await reconcile(servers, rabbit, restored, "--apply")

        ended = {"done": "sent", "published": "sent", "waiting": "sent", "retrying": "retrying"}
        await run_services("later", database=restored, **ended, later="sent")
        assert await states(restored) == {**ended, "later": "sent"}
        # The results of what PostgreSQL does not know are kept.
        for _ in range(2):
            dead = await hand.next_message("notifications.dead.telegram")
            assert dead.headers["dead_reason"] == "unknown delivery"
        await end_the_wait(hand)
        await run_services(database=restored, retrying="sent")
    sent = [call.content.message for call in provider.calls]
    # Both were sent after the backup; PostgreSQL could not know.
    assert {message for message in sent if sent.count(message) > 1} == {"published", "waiting", "retrying"}
    assert sent.count("retrying") == 2  # attempts


async def end_the_wait(hand: Hand) -> None:
    """Move the message of the only retry to its channel's queue, as if the wait were over."""
    waiting = await hand.next_message(topology.retry_queue_name(Channel.TELEGRAM, LONG))
    await hand.request(DeliveryRequested.from_body(waiting.body).model_copy(update={"not_before": None}))


async def test_reconcile_refuses_while_a_sender_may_hold_messages(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    await Stored(engine).add(Channel.TELEGRAM)
    before = await rows(engine, DELIVERIES)
    async with running_sender(rabbit, FakeProvider()):
        errors = await reconcile(servers, rabbit, postgres, "--apply", code=1)
    assert "notifications.telegram: stop the senders" in errors
    assert await rows(engine, DELIVERIES) == before


async def test_all_open_deliveries_are_published_again_if_rabbitmq_is_empty(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    ids = sorted([await Stored(engine).add(channel) for channel in Channel])
    assert "3 deliveries were put back" in await reconcile(servers, rabbit, postgres, "--apply")
    assert [row.delivery_id for row in await rows(engine, "SELECT delivery_id FROM outbox ORDER BY 1")] == ids


async def test_messages_stay_in_their_queue_however_many_there_are(
    servers: Servers, rabbit: RabbitSettings, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_contents, "MAX_PREFETCH", 2)
    requests = [delivery_requested() for _ in range(5)]
    for request in requests:
        await hand.request(request)
    await hand.publish("notifications", "telegram", b"no json")
    contents = await read_contents(rabbit, [HttpUrl(servers.management_url)])
    assert contents.requests.keys() == {DeliveryRound(request.delivery_id, 1) for request in requests}
    assert contents.unreadable == 1

    async def returned() -> bool:
        return await hand.depth("notifications.telegram") == 6

    await eventually(returned, "all messages are back in their queue")


async def test_delivery_that_changes_meanwhile_is_left_alone(engine: AsyncEngine) -> None:
    deliveries = OpenDeliveries(engine, chunk_size=2)
    ids = sorted([await Stored(engine).add(Channel.TELEGRAM) for _ in range(5)])
    found = await deliveries.without_outbox_row()
    assert [each.id for each in found] == ids
    newer = DeliveryRound(ids[0], 2)
    assert await deliveries.unknown([newer, *(DeliveryRound(each, 1) for each in ids)]) == {newer}
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET updated_at = now() WHERE id = :id"), {"id": ids[1]})
        await connection.execute(text("UPDATE deliveries SET status = 'sent' WHERE id = :id"), {"id": ids[2]})
    assert await deliveries.put_back(found) == 3
    assert [each.id for each in await deliveries.without_outbox_row()] == [ids[1]]
    assert await deliveries.outbox_rows() == 3


async def test_reconcile_needs_the_management_api(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    errors = await gateway_command("reconcile", servers=[rabbit, postgres], code=1)
    assert "RABBITMQ_MANAGEMENT_URL" in errors


def test_only_a_message_that_ends_the_round_counts() -> None:
    now = utc_now()
    stored = [OpenDelivery(new_id(now), new_id(now), "telegram", 2, now) for _ in range(5)]
    requested, earlier, later, retrying, ended = stored
    contents = BrokerContents(
        requests={
            DeliveryRound(requested.id, 2): "n",
            DeliveryRound(earlier.id, 1): "n",
            DeliveryRound(later.id, 3): "n",
        },
        results={DeliveryRound(retrying.id, 2), DeliveryRound(ended.id, 2)},
        ended={DeliveryRound(ended.id, 2)},
    )
    differences = compare(stored, contents, {DeliveryRound(later.id, 3)})
    assert differences.stranded == [earlier, later, retrying]
    assert differences.unknown_requests == {DeliveryRound(later.id, 3): "n"}
    assert differences.unknown_results == set()
