"""Dead letters: the reasons that they state, and the operator commands that handle them."""

import asyncio
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested, DeliveryResult, DeliveryResults, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand, hand_on, prepare_topology
from support.fakes import FakeProvider
from support.processes import gateway_command
from support.services import eventually, running_gateway, running_sender, running_status_writer
from support.stored import Stored


def request() -> DeliveryRequested:
    return DeliveryRequested(
        delivery_id=uuid4(), notification_id=uuid4(), user_id=1, channel=Channel.TELEGRAM, content=Content(message="x")
    )


async def run(rabbit: RabbitSettings, postgres: PostgresSettings, *arguments: str, code: int = 0) -> str:
    """Run `notify-gateway dead …`, check that it exits with `code`, and return its output."""
    return await gateway_command("dead", *arguments, servers=[rabbit, postgres], code=code)


async def wait_for_dead_letters(hand: Hand, count: int) -> None:
    async def all_arrived() -> bool:
        return await hand.depth("notifications.dead.telegram") == count

    await eventually(all_arrived, f"there are {count} dead letters")


async def test_dead_letter_states_its_reason_and_queue(rabbit: RabbitSettings, hand: Hand) -> None:
    wrong_channel = request().model_copy(update={"channel": Channel.EMAIL})
    async with running_sender(rabbit, FakeProvider()):
        await hand.publish("notifications", "telegram", b"no json", {"delivery_id": "d", "x-custom": "dropped"})
        unreadable = await hand.next_message("notifications.dead.telegram")
        await hand.publish("notifications", "telegram", wrong_channel.model_dump_json())
        misrouted = await hand.next_message("notifications.dead.telegram")
    assert unreadable.body == b"no json"
    assert {name: value for name, value in unreadable.headers.items() if not name.startswith("x-")} == {
        "delivery_id": "d", "dead_reason": "unreadable: invalid JSON", "dead_queue": "notifications.telegram"
    }  # fmt: skip
    assert misrouted.headers["dead_reason"] == "belongs to channel email"


async def test_handler_exception_is_recorded_as_the_dead_letter_reason(rabbit: RabbitSettings, hand: Hand) -> None:
    async def bug(_: DeliveryRequested) -> str:
        raise ZeroDivisionError

    async with running_sender(rabbit, FakeProvider(bug)):
        await hand.request(request())
        dead = await hand.next_message("notifications.dead.telegram")
    assert dead.headers["dead_reason"] == "bug: ZeroDivisionError"


async def test_sender_dead_letters_unreadable_bytes_and_continues(rabbit: RabbitSettings, hand: Hand) -> None:
    provider = FakeProvider()
    truncated = st.builds(
        lambda text, cut: text[:cut], st.just(request().model_dump_json().encode()), st.integers(0, 400)
    )
    bodies: list[bytes] = []

    def readable(body: bytes) -> bool:
        try:
            return bool(DeliveryRequested.model_validate_json(body))
        except ValidationError:
            return False

    @settings(max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=300), truncated, st.text(max_size=100).map(str.encode)))
    def collect(body: bytes) -> None:
        bodies.append(body)

    await asyncio.to_thread(collect)
    async with running_sender(rabbit, provider):
        for body in bodies:
            await hand.publish("notifications", "telegram", body)
        await wait_for_dead_letters(hand, len([body for body in bodies if not readable(body)]))
        await hand.request(requested := request())
        await wait_until_called(provider, requested)


async def wait_until_called(provider: FakeProvider, requested: DeliveryRequested) -> None:
    async def was_called() -> bool:
        return requested in provider.calls

    await eventually(was_called, "the next request is sent")


async def test_operator_lists_shows_requeues_and_drops_dead_letters(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    result = DeliveryResult(
        delivery_id=uuid4(), round=1, attempt=1, failures=0, outcome=Outcome.SENT,
        started_at=utc_now(), finished_at=utc_now(),
    )  # fmt: skip
    async with running_sender(rabbit, FakeProvider()), running_status_writer(rabbit, postgres):
        await hand.publish("notifications", "telegram", b"no json")
        await wait_for_dead_letters(hand, 1)
        await hand.report(result)
        await wait_for_dead_letters(hand, 2)
    listed = (await run(rabbit, postgres, "list")).splitlines()
    assert ["notifications.telegram" in listed[0], "unreadable: invalid JSON" in listed[0]] == [True, True]
    assert ["notifications.results.telegram" in listed[1], "unknown delivery" in listed[1]] == [True, True]
    unreadable, unknown = (line.split()[0] for line in listed)
    assert "no json" in await run(rabbit, postgres, "show", unreadable)
    assert await run(rabbit, postgres, "drop", unreadable) == "1 message(s)\n"
    await run(rabbit, postgres, "show", unreadable, code=1)
    assert await run(rabbit, postgres, "requeue", "--all") == "1 message(s)\n"
    again = await hand.next_message("notifications.results.telegram")
    assert again.message_id == unknown
    assert DeliveryResults.model_validate_json(again.body).results == (result,)
    assert await run(rabbit, postgres, "list") == ""


async def test_headers_and_bodies_that_anyone_may_write_do_not_control_the_terminal(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    headers = {"delivery_id": "d\nforged", "dead_reason": "\x1b[2Jcleared", "x\x1b": ["\x1b"], "x-death": ["no table"]}
    await hand.publish(
        "notifications.dead.telegram", "", b"\x1b[31mred\ntext", headers, message_id="\x1b]0;title\x07\nid"
    )
    await hand.publish("notifications.dead.telegram", "", b"x", {"x-death": ["no table"]})
    await wait_for_dead_letters(hand, 2)
    first, second = (await run(rabbit, postgres, "list")).splitlines()
    shown_id = r"\x1b]0;title\x07\nid"
    assert first == rf"{shown_id}  {'-':<23} delivery d\nforged  \x1b[2Jcleared"
    assert second.endswith("delivery -  unknown")
    shown = await run(rabbit, postgres, "show", shown_id)
    assert "\x1b" not in shown
    assert r"x\x1b: ['\x1b']" in shown.splitlines()
    assert shown.splitlines()[-2:] == [r"\x1b[31mred", "text"]
    assert await run(rabbit, postgres, "drop", shown_id) == "1 message(s)\n"


async def test_dead_letter_survives_being_read_many_times(rabbit: RabbitSettings, hand: Hand) -> None:
    await hand.publish("notifications.dead.telegram", "", b"kept")
    for _ in range(150):
        async with hand_on(rabbit) as another:
            queue = await another.channel.get_queue("notifications.dead.telegram", ensure=False)
            await queue.get(fail=False)
    await wait_for_dead_letters(hand, 1)


async def test_dead_lettered_delivery_is_requeued_once_as_a_new_round(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    """Requeue each delivery only once: requeuing one that was already retried would send it twice."""

    async def bug(_: DeliveryRequested) -> str:
        raise ZeroDivisionError

    async def status() -> str:
        async with engine.connect() as connection:
            status_in_database: str = (await connection.execute(text("SELECT status FROM deliveries"))).scalar_one()
        return status_in_database

    async def failed() -> bool:
        return await status() == "failed"

    async def sent() -> bool:
        return await status() == "sent"

    fixed_provider = FakeProvider()
    async with running_gateway(rabbit, postgres) as gateway, running_status_writer(rabbit, postgres):
        async with running_sender(rabbit, FakeProvider(bug)):
            body = {"user_id": 1, "message": "x", "type": "telegram"}
            assert (await gateway.post("/api/notifications", json=body)).status_code == 201
            await eventually(failed, "the delivery has failed")
        await wait_for_dead_letters(hand, 1)
        async with running_sender(rabbit, fixed_provider):
            assert await run(rabbit, postgres, "requeue", "--all") == "1 message(s)\n"
            await eventually(sent, "the delivery is sent in the new round")
        assert [(call.round, call.attempt) for call in fixed_provider.calls] == [(2, 2)]
        await wait_for_dead_letters(hand, 0)
        dead = DeliveryRequested.model_validate(fixed_provider.calls[0].model_dump() | {"round": 1, "attempt": 1})
        queue = {"dead_queue": "notifications.telegram"}
        await hand.publish("notifications.dead.telegram", "", dead.model_dump_json(), {**dead.headers(), **queue})
        await wait_for_dead_letters(hand, 1)
        assert await run(rabbit, postgres, "requeue", "--all") == "0 message(s)\n"
        await wait_for_dead_letters(hand, 1)


async def test_requeueing_a_forged_dead_letter_restarts_no_delivery_of_another_channel(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    stored = Stored(engine)
    other, own = await stored.add(Channel.EMAIL), await stored.add(Channel.TELEGRAM)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET status = 'failed'"))
    for queue, delivery_id in (
        ("notifications.email", other),
        ("notifications.telegram", other),
        ("notifications.results.email", other),
        ("notifications.telegram", own),
    ):
        headers = {"delivery_id": str(delivery_id), "round": 1, "dead_queue": queue}
        await hand.publish("notifications.dead.telegram", "", b"forged", headers)
    assert await run(rabbit, postgres, "requeue", "--all") == "1 message(s)\n"
    assert [await stored.state(each) for each in (other, own)] == [("failed", 1, 0, 0), ("pending", 2, 0, 0)]
    assert await hand.depth("notifications.results.email") == 0


async def test_requeueing_a_forged_dead_letter_sends_nothing_on_another_channel(
    rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    """RabbitMQ also routes a message by the keys in its headers `CC` and `BCC`."""
    await prepare_topology(rabbit, topology.gateway())
    forged = request().model_copy(update={"channel": Channel.EMAIL})
    for name in ("CC", "BCC"):
        headers = {name: ["email", "webhook"], "dead_queue": "notifications.telegram"}
        await hand.publish("notifications.dead.telegram", "", forged.body(), headers)
    await wait_for_dead_letters(hand, 2)
    assert await run(rabbit, postgres, "requeue", "--all") == "2 message(s)\n"
    assert [await hand.depth(f"notifications.{channel}") for channel in Channel] == [
        2 if channel is Channel.TELEGRAM else 0 for channel in Channel
    ]
