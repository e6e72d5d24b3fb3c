"""`python -m support.crashes POINT`: run a service until it reaches POINT, then kill it as `kill -9` would."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence, Set
from datetime import timedelta
from typing import Any

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, StatusChange
from notify_common.errors import PublishFailed
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.settings import load_settings
from notify_common.sending.service import create_sender
from notify_common.sending.simulator import WithSimulation
from notify_database.engine import create_engine
from notify_gateway.application import Gateway
from notify_gateway.cli import OperatorSettings
from notify_gateway.deliveries.retries import RETRY_CHUNK, TAKE_TURN, DeliveryRetries
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from notify_gateway.notifications.new_notification import new_notification
from notify_gateway.outbox.lease import Lease
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.settings import GatewaySettings
from notify_status_writer.application import create_status_writer
from notify_status_writer.settings import StatusWriterSettings
from notify_telegram_sender.settings import TelegramSenderSettings
from typing_extensions import override

from support.amqp import hand_on
from support.fakes import FakeProvider
from support.services import eventually


def die() -> None:
    """Kill this process at once: no handler or `finally` block runs, and nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


class RelayKilledBeforeHandOver(OutboxRelay):
    @override
    def channels_with_room(self, requests: Sequence[DeliveryRequested]) -> Set[Channel]:
        return frozenset(Channel)

    @override
    def hand_over(self, requests: Sequence[DeliveryRequested], lease: Lease) -> None:
        die()


class PublisherKilledBeforeConfirm(ConfirmedPublisher):
    @override
    async def publish(self, messages: Sequence[OutgoingMessage], **options: Any) -> list[PublishFailed | None]:
        publishing = asyncio.create_task(super().publish(messages, **options))
        async with hand_on(load_settings(OperatorSettings)) as hand:

            async def has_arrived() -> bool:
                return await hand.depth("notifications.telegram") == 1

            await eventually(has_arrived, "the broker has the message")
        die()
        return await publishing


class PublisherKilledAfterConfirm(ConfirmedPublisher):
    """A publisher that dies after the broker's confirm, before a gateway deletes its outbox rows or a sender acks."""

    @override
    async def publish(self, messages: Sequence[OutgoingMessage], **options: Any) -> list[PublishFailed | None]:
        assert await super().publish(messages, **options) == [None]
        die()
        return []


class EventPublisherKilledAfterCommit(EventPublisher):
    @override
    def publish(self, changes: Sequence[StatusChange]) -> None:
        die()


async def gateway(
    relay_class: type[OutboxRelay] = OutboxRelay, publisher_class: type[ConfirmedPublisher] = ConfirmedPublisher
) -> None:
    """Accept one notification and relay it."""
    gateway = Gateway(load_settings(GatewaySettings), relay_class=relay_class, publisher_class=publisher_class)
    request = LegacyNotificationRequest(user_id=1, message="x", type=Channel.TELEGRAM)
    await gateway.intake.accept(new_notification(request, "default"))
    await gateway.work(asyncio.Event())


async def sender(
    *, dies_during_call: bool = False, publisher_class: type[ConfirmedPublisher] = ConfirmedPublisher
) -> None:
    """Send one delivery."""

    async def send(_: DeliveryRequested) -> str:
        if dies_during_call:
            die()
        return "sent"

    provider = FakeProvider(send)
    sender = create_sender(
        load_settings(TelegramSenderSettings),
        channel=Channel.TELEGRAM,
        provider=WithSimulation(provider, provider),
        publisher_class=publisher_class,
    )
    await sender.work(asyncio.Event())


async def status_writer() -> None:
    """Apply one result."""
    settings = load_settings(StatusWriterSettings)
    events = EventPublisherKilledAfterCommit(settings, "status_writer")
    await create_status_writer(settings, events=events).work(asyncio.Event())


async def retry() -> None:
    """Retry the first chunk of a bulk retry, and die during the second."""
    engine = create_engine(load_settings(OperatorSettings), pool_size=2)
    await DeliveryRetries(engine, chunk_size=10).advance()
    async with engine.begin() as connection:
        job = (await connection.execute(TAKE_TURN, {"longest_pause": timedelta(0)})).scalar_one()
        await connection.execute(RETRY_CHUNK, {"job": job, "size": 10, "pace": timedelta(0)})
        die()


# The points are listed in the order in which a delivery passes them.
POINTS = {
    "between commit and hand-over": lambda: gateway(RelayKilledBeforeHandOver),
    "between publish and confirm": lambda: gateway(publisher_class=PublisherKilledBeforeConfirm),
    "between confirm and outbox delete": lambda: gateway(publisher_class=PublisherKilledAfterConfirm),
    "between provider call and result": lambda: sender(dies_during_call=True),
    "between result and ack": lambda: sender(publisher_class=PublisherKilledAfterConfirm),
    "between SQL commit and ack": status_writer,
}


if __name__ == "__main__":
    asyncio.run({**POINTS, "during a chunk of a bulk retry": retry}[sys.argv[1]]())
