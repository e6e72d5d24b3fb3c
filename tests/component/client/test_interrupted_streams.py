"""A task that gives up waiting for an event can wait again."""

import asyncio

import pytest
from notify_client import AsyncClient, StatusEvent
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from support.fakes import FakeProvider
from support.services import TIMEOUT, eventually, running_sender, running_status_writer, served_gateway


async def test_stream_continues_after_a_cancelled_wait(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
        AsyncClient(str(url)) as client,
        client.events.stream() as events,
    ):
        waiting = asyncio.ensure_future(anext(events))

        async def has_position() -> bool:
            return events.last_event_id is not None

        await eventually(has_position, "the subscription has a position")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        created = await client.notifications.create(user_id="1", channels=["telegram"], message="m")
        await client.notifications.wait(created.id, timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            event = await anext(events)
        assert isinstance(event, StatusEvent)
        assert (event.notification_id, event.status) == (created.id, "sent")
