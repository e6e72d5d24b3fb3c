"""Messages with properties that cannot be decoded: each is handled by its body, and costs nobody the connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
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
from support.raw_messages import UNDECODABLE, header, long, publish_raw
from support.services import delivery_requested, eventually, running_sender, running_status_writer, served_gateway
from support.stored import Stored


@asynccontextmanager
async def connected_throughout(worker: Worker) -> AsyncIterator[None]:
    """Check that no consumer loses its connection before the context ends."""

    async def all_consume() -> bool:
        return all(subscription.connection is not None for subscription in worker.subscriptions)

    await eventually(all_consume, "every subscription is consuming")
    connections = [subscription.connection for subscription in worker.subscriptions]
    yield
    assert [subscription.connection for subscription in worker.subscriptions] == connections


def request(delivery_id: UUID) -> bytes:
    return delivery_requested(delivery_id=delivery_id).body()


def dead_in(queue: str) -> bytes:
    """Encode the header that names the queue in which a message died."""
    return header(b"dead_queue", b"S", long(queue.encode()))


async def test_sender_sends_readable_requests_and_dead_letters_unreadable_ones(
    rabbit: RabbitSettings, hand: Hand
) -> None:
    provider, requests = FakeProvider(), [delivery_requested() for _ in UNDECODABLE]
    async with running_sender(rabbit, provider) as sender, connected_throughout(sender):
        for undecodable, requested in zip(UNDECODABLE, requests, strict=True):
            for body in (undecodable.name.encode(), requested.body()):
                # An attacker with a sender's password reaches the queue through the retry exchange.
                await publish_raw(
                    hand.channel,
                    "notifications.telegram.retry",
                    topology.DUE_ROUTING_KEY,
                    body,
                    undecodable.elsewhere(),
                )
            dead = await hand.next_message("notifications.dead.telegram")
            assert (dead.body.decode(), dead.headers["dead_queue"]) == (undecodable.name, "notifications.telegram")
        await hand.results(len(requests))
    assert len(provider.calls) == len(requests)
    assert {call.delivery_id for call in provider.calls} == {requested.delivery_id for requested in requests}


async def test_status_writer_applies_readable_results_and_dead_letters_unreadable_ones(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    stored, now = Stored(engine), utc_now()
    async with running_status_writer(rabbit, postgres) as writer, connected_throughout(writer):
        for undecodable in UNDECODABLE:
            delivery_id = await stored.add(Channel.TELEGRAM)
            result = DeliveryResult(
                delivery_id=delivery_id, round=1, attempt=1, failures=0, outcome=Outcome.SENT, started_at=now,
                finished_at=now,
            )  # fmt: skip
            for body in (undecodable.name.encode(), DeliveryResults(results=(result,)).model_dump_json().encode()):
                await publish_raw(
                    hand.channel, "notifications.results.telegram", "telegram", body, undecodable.elsewhere()
                )
            await stored.becomes(delivery_id, "sent")
            dead = await hand.next_message("notifications.dead.telegram")
            assert (dead.body.decode(), dead.headers["dead_reason"]) == (undecodable.name, "unreadable")


async def test_status_writer_fails_the_deliveries_of_dead_letters(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    stored = Stored(engine)
    own = dead_in("notifications.telegram")
    source = await hand.channel.get_queue("notifications.telegram")
    async with running_status_writer(rabbit, postgres) as writer, connected_throughout(writer):
        for undecodable in UNDECODABLE:
            readable, unreadable, rejected = [await stored.add(Channel.TELEGRAM) for _ in range(3)]
            named = header(b"delivery_id", b"S", long(str(unreadable).encode()))
            for body, headers in ((request(readable), own), (b"no json", own + named)):
                await publish_raw(hand.channel, "notifications.dead.telegram", "", body, undecodable, headers)
            # RabbitMQ dead-letters a rejected message with its properties, to the inboxes that all channels share.
            await publish_raw(hand.channel, "notifications", "telegram", request(rejected), undecodable.elsewhere())
            message = await source.get()
            assert message is not None
            await message.reject(requeue=False)
            for delivery_id in (readable, unreadable, rejected):
                await stored.becomes(delivery_id, "failed")


async def test_event_stream_goes_on(rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand) -> None:
    async with served_gateway(rabbit, postgres) as url, reading(url) as (reader, live):
        assert live
        for undecodable in UNDECODABLE:
            notification = await post(url)
            [delivery] = notification["deliveries"]
            change = StatusChange(
                delivery_id=delivery["id"], notification_id=notification["id"], channel=Channel.TELEGRAM,
                status=DeliveryStatus.SENT, round=1, attempt=1, changed_at=utc_now(),
            )  # fmt: skip
            body = StatusChanges(changes=(change,)).model_dump_json().encode()
            await publish_raw(hand.channel, "notifications.events", "telegram.sent", body, undecodable)
            event = await reader.next()
            assert event is not None, undecodable.name
            assert (event["event"], event["data"]["notification_id"]) == ("status", notification["id"])


async def test_operator_reads_requeues_and_drops_dead_letters(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    async def run(*arguments: str) -> str:
        return await gateway_command("dead", *arguments, servers=[rabbit, postgres], code=0)

    await prepare_topology(rabbit, topology.gateway())
    results, dead = "notifications.results.telegram", "notifications.dead.telegram"
    names = [undecodable.name for undecodable in UNDECODABLE]

    async def publish_all() -> None:
        for undecodable in UNDECODABLE:
            await publish_raw(hand.channel, dead, "", undecodable.name.encode(), undecodable, dead_in(results))

    await publish_all()
    listed = (await run("list")).splitlines()
    assert len(listed) == len(UNDECODABLE)
    assert all(results in line for line in listed)
    assert (await run("show", "-")).splitlines()[-1] in names
    assert await run("requeue", "--all") == f"{len(names)} message(s)\n"
    requeued = [await hand.next_message(results) for _ in names]
    assert sorted(message.body.decode() for message in requeued) == sorted(names)
    await publish_all()
    assert await run("drop", "--all") == f"{len(names)} message(s)\n"
