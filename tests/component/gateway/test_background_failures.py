"""A gateway whose background work fails ends at once instead of accepting notifications that it would never publish."""

import asyncio
from contextlib import aclosing

import pytest
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from notify_gateway.notifications.new_notification import new_notification
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.settings import GatewaySettings
from support.services import TIMEOUT, impossible_change
from typing_extensions import override

REQUEST = LegacyNotificationRequest(user_id=1, message="x", type=Channel.TELEGRAM)


class FailingRelay(OutboxRelay):
    @override
    async def run(self, stop: asyncio.Event) -> None:
        raise ZeroDivisionError


def gateway_settings(rabbit: RabbitSettings, postgres: PostgresSettings) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {**postgres.model_dump(exclude_unset=True), **rabbit.model_dump(exclude_unset=True), "auth": "off"}
    )


async def test_dead_relay_ends_its_gateway_although_requests_keep_arriving(
    rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    gateway = Gateway(gateway_settings(rabbit, postgres), relay_class=FailingRelay)

    async def post_for_ever() -> None:
        while True:
            await gateway.intake.accept(new_notification(REQUEST, "default"))

    posting = [asyncio.create_task(post_for_ever()) for _ in range(5)]
    try:
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(TIMEOUT):
                await gateway.work(asyncio.Event())
    finally:
        for task in posting:
            task.cancel()
        await asyncio.wait(posting)
        await gateway.aclose()


async def test_dead_publisher_of_events_ends_its_gateway(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    settings = gateway_settings(rabbit, postgres)
    events = EventPublisher(settings, "gateway")
    async with aclosing(Gateway(settings, events=events)) as gateway:
        events.publish([impossible_change()])
        with pytest.raises(AttributeError):
            async with asyncio.timeout(TIMEOUT):
                await gateway.work(asyncio.Event())
