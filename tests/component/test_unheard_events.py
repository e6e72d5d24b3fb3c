"""While nobody subscribes, status changes are collected, and none is lost for the first subscriber."""

import asyncio
from typing import Any

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import DeliveryStatus, StatusChange, StatusChanges
from notify_common.rabbitmq import events
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_common.runtime.clock import utc_now
from support.amqp import Hand, prepare_topology
from support.services import TIMEOUT, eventually


def change() -> StatusChange:
    now = utc_now()
    return StatusChange(
        delivery_id=new_id(now), notification_id=new_id(now), channel=Channel.EMAIL, status=DeliveryStatus.SENT,
        round=1, attempt=1, changed_at=now,
    )  # fmt: skip


async def test_changes_are_collected_until_somebody_subscribes(
    rabbit: RabbitSettings, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "UNHEARD_INTERVAL", 2.0)  # seconds, long enough to subscribe
    await prepare_topology(rabbit, [], [topology.EVENTS])
    publisher = EventPublisher(rabbit, "test")
    collected, live = [change(), change()], [change(), change()]

    async def returned() -> bool:
        return publisher.unheard

    async with publisher.running(), asyncio.timeout(TIMEOUT):
        publisher.publish([change()])
        await eventually(returned, "RabbitMQ has returned the message")
        for each in collected:
            publisher.publish([each])
        published = await hand.listen("notifications.events", "#")
        assert StatusChanges.model_validate_json((await published.get()).body).changes == tuple(collected)
        for each in live:
            publisher.publish([each])
            assert StatusChanges.model_validate_json((await published.get()).body).changes == (each,)


async def test_subscriber_that_refuses_messages_does_not_hold_up_the_others(rabbit: RabbitSettings, hand: Hand) -> None:
    await prepare_topology(rabbit, [], [topology.EVENTS])
    full: Any = {"x-max-length": 0, "x-overflow": "reject-publish"}
    refusing = await hand.channel.declare_queue(exclusive=True, arguments=full)
    await refusing.bind("notifications.events", "#")
    published = await hand.listen("notifications.events", "#")
    publisher, changes = EventPublisher(rabbit, "test"), [change(), change()]
    async with publisher.running(), asyncio.timeout(TIMEOUT):
        for each in changes:
            publisher.publish([each])
            assert StatusChanges.model_validate_json((await published.get()).body).changes == (each,)
