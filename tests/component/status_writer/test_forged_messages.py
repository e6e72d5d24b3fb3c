"""Forged results and dead letters: what the user of a telegram sender can change, and what it cannot."""

import json
import struct
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from uuid import UUID, uuid4

import aiormq
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
    LARGEST_COUNTER,
    MAX_CHANGES_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESULTS,
    MAX_RESULTS_BYTES,
    Content,
    DeliveryRequested,
    DeliveryResult,
    DeliveryResults,
    Outcome,
)
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.worker import Worker
from notify_database.engine import PostgresSettings
from notify_status_writer.delivery_state import MAX_ATTEMPTS_AHEAD, Refusal
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.broker_users import installed_definitions
from support.fakes import FakeProvider
from support.raw_messages import Undecodable, header, long, publish_raw, table
from support.servers import Servers
from support.services import eventually, running_gateway, running_sender, running_status_writer
from support.stored import Stored

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RESULTS = "notifications.results.telegram"
DEAD = "notifications.dead.telegram"
QUEUE = "notifications.telegram"
Users = Mapping[str, RabbitSettings]


@pytest.fixture
async def users(servers: Servers, rabbit: RabbitSettings) -> AsyncIterator[Users]:
    with installed_definitions(servers, rabbit) as users:
        await prepare_topology(rabbit, topology.retries(Channel.TELEGRAM, []))
        yield users


@pytest.fixture
async def thief(users: Users) -> AsyncIterator[Hand]:
    """Act with the stolen password of the telegram sender."""
    async with hand_on(users["telegram_sender"]) as hand:
        yield hand


@pytest.fixture
def stored(engine: AsyncEngine) -> Stored:
    return Stored(engine)


@pytest.fixture
async def writer(users: Users, postgres: PostgresSettings) -> AsyncIterator[Worker]:
    async with running_status_writer(users["status_writer"], postgres) as writer:
        yield writer


def result(delivery_id: UUID, outcome: Outcome = Outcome.SENT, round_: int = 1, attempt: int = 1) -> DeliveryResult:
    return DeliveryResult(
        delivery_id=delivery_id, round=round_, attempt=attempt, failures=0, outcome=outcome,
        started_at=NOW, finished_at=NOW,
    )  # fmt: skip


def request(delivery_id: UUID, channel: Channel, **change: int) -> DeliveryRequested:
    return DeliveryRequested.model_validate(
        {
            "delivery_id": delivery_id, "notification_id": uuid4(), "user_id": 1, "channel": channel,
            "content": Content(message="x"), **change,
        }
    )  # fmt: skip


def x_death(entry: bytes) -> bytes:
    return header(b"x-death", b"A", long(b"F" + table(entry)))


async def report(thief: Hand, *results: DeliveryResult) -> None:
    await thief.publish(RESULTS, "telegram", DeliveryResults(results=results).model_dump_json())


async def is_refused(writer: Worker, reason: Refusal, count: int) -> None:
    """Wait until so many results of the telegram senders' queue have been refused for this reason."""

    async def counted() -> bool:
        labels = {"queue": RESULTS, "reason": reason.value}
        return writer.registry.get_sample_value("notify_results_refused_total", labels) == count

    await eventually(counted, f"{count} results are refused: {reason}")


async def test_sender_can_report_only_results_of_its_own_channel(
    thief: Hand, writer: Worker, stored: Stored, hand: Hand
) -> None:
    own, other = await stored.add(Channel.TELEGRAM), await stored.add(Channel.EMAIL)
    await report(thief, result(other), result(own))
    await stored.becomes(own, "sent")  # its neighbour in the batch is not held up
    await is_refused(writer, Refusal.OTHER_CHANNEL, 1)
    assert (await hand.next_message(DEAD)).headers["dead_reason"] == Refusal.OTHER_CHANNEL
    assert await stored.state(other) == ("pending", 1, 0, 0)


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"round_": 2}, Refusal.FUTURE_ROUND),
        ({"round_": LARGEST_COUNTER}, Refusal.FUTURE_ROUND),
        ({"attempt": MAX_ATTEMPTS_AHEAD + 1}, Refusal.ATTEMPT_TOO_HIGH),
        ({"attempt": LARGEST_COUNTER}, Refusal.ATTEMPT_TOO_HIGH),
        ({"attempt": 0}, Refusal.CONTRADICTION),
    ],
)
async def test_result_with_impossible_counters_does_not_stop_a_delivery(
    thief: Hand, writer: Worker, stored: Stored, forged: dict[str, int], reason: Refusal
) -> None:
    delivery_id = await stored.add(Channel.TELEGRAM)
    await report(thief, result(delivery_id, Outcome.FAILED, **forged), result(delivery_id, Outcome.RETRYING, attempt=1))
    await stored.becomes(delivery_id, "retrying")
    assert (await stored.state(delivery_id))[1:3] == (1, 1)
    await report(thief, result(delivery_id, attempt=2))
    await stored.becomes(delivery_id, "sent")
    await is_refused(writer, reason, 1)


async def test_delivery_whose_attempts_are_used_up_can_still_be_retried_and_sent(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, stored: Stored
) -> None:
    """Older versions stored any attempt number, and many forged results can still raise it to the largest one."""
    delivery_id = await stored.add(Channel.TELEGRAM)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE deliveries SET status = 'failed', attempt = :largest"), {"largest": LARGEST_COUNTER}
        )
    async with (
        running_status_writer(rabbit, postgres),
        running_sender(rabbit, FakeProvider()),
        running_gateway(rabbit, postgres) as gateway,
    ):
        response = await gateway.post(f"/api/deliveries/{delivery_id}/retry")
        assert response.status_code < 300, response.text
        await stored.becomes(delivery_id, "sent")


@pytest.mark.parametrize("claimed", [QUEUE, "notifications.email"])
@pytest.mark.parametrize("readable", [True, False])
async def test_forged_dead_letter_fails_no_delivery_of_another_channel(
    thief: Hand, writer: Worker, stored: Stored, claimed: str, readable: bool
) -> None:
    other, own = await stored.add(Channel.EMAIL), await stored.add(Channel.TELEGRAM)
    for delivery_id, channel, queue in ((other, Channel.EMAIL, claimed), (own, Channel.TELEGRAM, QUEUE)):
        body = request(delivery_id, channel).body() if readable else b"\xff"
        headers = {"delivery_id": str(delivery_id), "round": 1, "dead_queue": queue}
        await thief.publish(DEAD, "", body, headers)
    await stored.becomes(own, "failed")
    await is_refused(writer, Refusal.OTHER_CHANNEL, 1)
    assert await stored.state(other) == ("pending", 1, 0, 0)


@pytest.mark.parametrize("readable", [True, False])
async def test_dead_letter_that_rabbitmq_makes_of_a_forged_message_fails_no_delivery_of_another_channel(
    thief: Hand, writer: Worker, stored: Stored, hand: Hand, readable: bool
) -> None:
    """The headers claim that the message died in the queue of another channel."""
    other, own = await stored.add(Channel.EMAIL), await stored.add(Channel.TELEGRAM)
    death = {"queue": "notifications.email", "reason": "rejected", "count": 1, "exchange": "notifications"}
    for delivery_id, channel in ((other, Channel.EMAIL), (own, Channel.TELEGRAM)):
        headers = {
            "delivery_id": str(delivery_id), "round": 1, "dead_queue": "notifications.email", "x-death": [death],
            "x-first-death-queue": "notifications.email", "x-last-death-queue": "notifications.email",
        }  # fmt: skip
        body = request(delivery_id, channel).body() if readable else b"\xff"
        await thief.publish(f"{QUEUE}.retry", topology.DUE_ROUTING_KEY, body, headers)
        source = await thief.channel.get_queue(QUEUE, ensure=False)
        message = await source.get()
        assert message is not None
        await message.reject(requeue=False)
    await stored.becomes(own, "failed")

    async def handled() -> bool:
        return [await hand.depth(f"notifications.dead.{inbox}") for inbox in ("failed", "inbox")] == [0, 0]

    await eventually(handled, "every copy has been handled")
    await is_refused(writer, Refusal.OTHER_CHANNEL, 2)  # one for each of the shared inboxes
    assert await stored.state(other) == ("pending", 1, 0, 0)


@pytest.mark.parametrize("place", ["headers", "entry"])
async def test_header_that_is_there_twice_fails_no_delivery_of_another_channel(
    thief: Hand, writer: Worker, stored: Stored, hand: Hand, place: str
) -> None:
    """RabbitMQ adds its entry to the first `x-death`, and to the first entry that names its queue and its reason."""
    other, own = await stored.add(Channel.EMAIL), await stored.add(Channel.TELEGRAM)
    real, forged = [header(b"queue", b"S", long(queue)) for queue in (QUEUE.encode(), b"notifications.email")]
    rejected = header(b"reason", b"S", long(b"rejected"))
    if place == "headers":
        headers = x_death(real + rejected) + x_death(forged + rejected)
    else:
        headers = x_death(real + rejected + header(b"count", b"l", struct.pack(">q", 1)) + forged)
    for delivery_id, channel in ((other, Channel.EMAIL), (own, Channel.TELEGRAM)):
        body, message = request(delivery_id, channel).body(), Undecodable("header that is there twice")
        await publish_raw(thief.channel, f"{QUEUE}.retry", topology.DUE_ROUTING_KEY, body, message, headers)
        received = await (await thief.channel.get_queue(QUEUE, ensure=False)).get()
        assert received is not None
        await received.reject(requeue=False)
    await stored.becomes(own, "failed")

    async def handled() -> bool:
        return [await hand.depth(f"notifications.dead.{inbox}") for inbox in ("failed", "inbox")] == [0, 0]

    await eventually(handled, "every copy has been handled")
    await is_refused(writer, Refusal.OTHER_CHANNEL, 2)  # one for each of the shared inboxes
    assert await stored.state(other) == ("pending", 1, 0, 0)


async def test_dead_letter_with_the_largest_counters_fails_its_delivery_once(
    thief: Hand, writer: Worker, stored: Stored
) -> None:
    delivery_id = await stored.add(Channel.TELEGRAM)
    forged = request(delivery_id, Channel.TELEGRAM, attempt=LARGEST_COUNTER, failures=LARGEST_COUNTER)
    await thief.publish(DEAD, "", forged.body(), {"dead_queue": QUEUE})
    await thief.publish(DEAD, "", request(delivery_id, Channel.TELEGRAM).body(), {"dead_queue": QUEUE})
    await stored.becomes(delivery_id, "failed")
    await is_refused(writer, Refusal.ATTEMPT_TOO_HIGH, 1)
    assert await stored.state(delivery_id) == ("failed", 1, 1, 1)


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize("field", ["started_at", "finished_at", "next_attempt_at"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_results_with_times_that_cannot_be_stored_are_dead_lettered_in_one_message(
    thief: Hand, stored: Stored, hand: Hand, field: str, time: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If they reached the database, each one would have to be found among its valid neighbours."""
    forged, valid = await stored.add(Channel.TELEGRAM), await stored.add(Channel.TELEGRAM)
    bad = [
        {**result(forged, Outcome.RETRYING, attempt=number + 1).model_dump(mode="json"), field: time}
        for number in range(MAX_RESULTS - 1)
    ]
    body = json.dumps({"version": 1, "results": [*bad, result(valid).model_dump(mode="json")]}).encode()
    await thief.publish(RESULTS, "telegram", body)
    dead = await hand.next_message(DEAD)
    assert (dead.body, dead.headers["dead_reason"]) == (body, f"unreadable results: {MAX_RESULTS - 1}")
    assert await stored.state(valid) == ("sent", 1, 1, 0)
    assert await stored.state(forged) == ("pending", 1, 0, 0)
    assert await hand.depth(DEAD) == 0
    assert "cannot be applied" not in caplog.text


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize("padding", [b"", b" " * MAX_RESULTS_BYTES], ids=["too many results", "too long"])
async def test_results_that_no_sender_publishes_in_one_message_are_dead_lettered_unread(
    thief: Hand, stored: Stored, hand: Hand, padding: bytes
) -> None:
    forged, valid = await stored.add(Channel.TELEGRAM), await stored.add(Channel.TELEGRAM)
    many = (result(forged),) if padding else (result(forged),) * (MAX_RESULTS + 1)
    body = json.dumps({"version": 1, "results": [each.model_dump(mode="json") for each in many]}).encode() + padding
    await thief.publish(RESULTS, "telegram", body)
    assert (await hand.next_message(DEAD)).body == body
    await report(thief, result(valid))
    await stored.becomes(valid, "sent")
    assert await stored.state(forged) == ("pending", 1, 0, 0)
    assert await hand.depth(DEAD) == 0


@pytest.mark.usefixtures("writer")
async def test_dead_letter_that_is_too_long_is_known_only_by_its_headers(thief: Hand, stored: Stored) -> None:
    in_body, in_headers, valid = [await stored.add(Channel.TELEGRAM) for _ in range(3)]
    body = request(in_body, Channel.TELEGRAM).body() + b" " * MAX_REQUEST_BYTES
    await thief.publish(DEAD, "", body, {"delivery_id": str(in_headers), "dead_queue": QUEUE})
    await thief.publish(DEAD, "", request(valid, Channel.TELEGRAM).body(), {"dead_queue": QUEUE})
    await stored.becomes(in_headers, "failed")
    await stored.becomes(valid, "failed")
    assert await stored.state(in_body) == ("pending", 1, 0, 0)


async def test_rabbitmq_refuses_messages_that_are_longer_than_any_of_the_services(thief: Hand) -> None:
    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="max size"):
        await thief.publish(RESULTS, "telegram", b" " * (MAX_CHANGES_BYTES + 1))


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize("key", ["results", "telegram"])
async def test_results_of_older_senders_are_applied(stored: Stored, hand: Hand, key: str) -> None:
    delivery_id = await stored.add(Channel.TELEGRAM)
    await hand.publish("notifications.results", key, DeliveryResults(results=(result(delivery_id),)).model_dump_json())
    await stored.becomes(delivery_id, "sent")


@pytest.mark.usefixtures("writer")
async def test_dead_letter_of_an_older_sender_fails_its_delivery(stored: Stored, hand: Hand) -> None:
    delivery_id = await stored.add(Channel.EMAIL)
    body = request(delivery_id, Channel.EMAIL).body()
    await hand.publish("notifications.dead", "", body, {"dead_queue": "notifications.email", "dead_reason": "bug"})
    await stored.becomes(delivery_id, "failed")
