"""Messages with properties that cannot be decoded: each is handled by its body, and costs nobody the connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
    DeliveryRequested,
    DeliveryResult,
    DeliveryResults,
    DeliveryStatus,
    Outcome,
    StatusChange,
    StatusChanges,
)
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.worker import Worker
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, prepare_topology
from support.event_stream import post, reading
from support.fakes import FakeProvider
from support.processes import gateway_command
from support.raw_messages import UNDECODABLE, Undecodable, header, long, publish_raw
from support.services import delivery_requested, eventually, running_sender, running_status_writer, served_gateway
from support.stored import Stored

ARCHIVES = [binding.queue.name for binding in topology.archives()]
every_kind = pytest.mark.parametrize("undecodable", UNDECODABLE, ids=lambda kind: kind.name.replace(" ", "-"))


@asynccontextmanager
async def connected_throughout(worker: Worker) -> AsyncIterator[None]:
    """Check that no consumer loses its connection meanwhile."""

    async def all_consume() -> bool:
        return all(subscription.connection is not None for subscription in worker.subscriptions)

    await eventually(all_consume, "every subscription is consuming")
    connections = [subscription.connection for subscription in worker.subscriptions]
    yield
    assert [subscription.connection for subscription in worker.subscriptions] == connections


def request(delivery_id: UUID) -> DeliveryRequested:
    return delivery_requested(delivery_id=delivery_id)


def dead_in(queue: str) -> bytes:
    """Encode the header that names the queue in which a message died."""
    return header(b"dead_queue", b"S", long(queue.encode()))


@every_kind
async def test_sender_sends_a_readable_request_and_dead_letters_an_unreadable_one(
    rabbit: RabbitSettings, hand: Hand, undecodable: Undecodable
) -> None:
    provider, requested = FakeProvider(), delivery_requested()
    async with running_sender(rabbit, provider) as sender, connected_throughout(sender):
        # An attacker with a sender's password reaches the queue through the retry exchange.
        for body in (b"no json", requested.body()):
            await publish_raw(
                hand.channel, "notifications.telegram.retry", topology.DUE_ROUTING_KEY, body, undecodable.elsewhere()
            )
        dead = await hand.next_message("notifications.dead.telegram")
        await hand.results(1)
    assert (dead.body, dead.headers["dead_queue"]) == (b"no json", "notifications.telegram")
    assert provider.calls == [requested]


@every_kind
async def test_status_writer_applies_results_and_dead_letters(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand, undecodable: Undecodable
) -> None:
    stored = Stored(engine)
    sent, unreadable, dead, rejected = [await stored.add(Channel.TELEGRAM) for _ in range(4)]
    now = utc_now()
    result = DeliveryResult(
        delivery_id=sent, round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=now, finished_at=now
    )
    # RabbitMQ dead-letters a rejected message itself, with all of its properties, to the inboxes that channels share.
    await publish_raw(hand.channel, "notifications", "telegram", request(rejected).body(), undecodable.elsewhere())
    source = await hand.channel.get_queue("notifications.telegram")
    async with running_status_writer(rabbit, postgres) as writer, connected_throughout(writer):
        message = await source.get()
        assert message is not None
        await message.reject(requeue=False)
        await stored.becomes(rejected, "failed")
        own = dead_in("notifications.telegram")
        named = header(b"delivery_id", b"S", long(str(unreadable).encode()))
        exchange = "notifications.dead.telegram"
        await publish_raw(hand.channel, exchange, "", request(dead).body(), undecodable, own)
        await publish_raw(hand.channel, exchange, "", b"no json", undecodable, own + named)
        await stored.becomes(dead, "failed")
        await stored.becomes(unreadable, "failed")
        for body in (b"no json", DeliveryResults(results=(result,)).model_dump_json().encode()):
            await publish_raw(
                hand.channel, "notifications.results.telegram", "telegram", body, undecodable.elsewhere()
            )
        await stored.becomes(sent, "sent")

        async def archived() -> bool:
            return await hand.depth("notifications.dead.telegram") == 3

        await eventually(archived, "the unreadable results are dead-lettered")


@every_kind
async def test_event_stream_goes_on(rabbit: RabbitSettings, postgres: PostgresSettings, undecodable: Undecodable, hand: Hand) -> None:
    async with served_gateway(rabbit, postgres) as url:
        notification = await post(url)
        [delivery] = notification["deliveries"]
        change = StatusChange(
            delivery_id=delivery["id"], notification_id=notification["id"], channel=Channel.TELEGRAM,
            status=DeliveryStatus.SENT, round=1, attempt=1, changed_at=utc_now(),
        )  # fmt: skip
        body = StatusChanges(changes=(change,)).model_dump_json().encode()
        async with reading(url) as (reader, live):
            assert live
            await publish_raw(hand.channel, "notifications.events", "telegram.sent", body, undecodable)
            event = await reader.next()
            assert event is not None
            assert (event["event"], event["data"]["notification_id"]) == ("status", notification["id"])


@every_kind
async def test_operator_reads_requeues_and_drops_dead_letters(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand, undecodable: Undecodable
) -> None:
    async def run(*arguments: str) -> str:
        return await gateway_command("dead", *arguments, servers=[rabbit, postgres], code=0)

    await prepare_topology(rabbit, topology.gateway())
    results, dead = "notifications.results.telegram", "notifications.dead.telegram"
    await publish_raw(hand.channel, dead, "", b"first", undecodable, dead_in(results))
    await hand.publish(dead, "", b"second", {"dead_queue": results}, message_id="second")
    first, second = (await run("list")).splitlines()
    assert results in first
    assert second.startswith("second ")
    assert (await run("show", first.split()[0])).endswith("\nfirst\n")
    assert await run("requeue", "--all") == "2 message(s)\n"
    assert {(await hand.next_message(results)).body for _ in range(2)} == {b"first", b"second"}
    await publish_raw(hand.channel, dead, "", b"third", undecodable, dead_in(results))
    assert await run("drop", "--all") == "1 message(s)\n"
