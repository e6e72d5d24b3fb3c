"""Long Telegram messages, which are sent in parts with pauses, must not delay the messages of other tenants."""

import asyncio

import pytest
from notify_common.contracts.messages import Content, DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_telegram_sender.limits import telegram_limits
from notify_telegram_sender.settings import TelegramSenderSettings
from support.amqp import Hand
from support.fakes import FakeProvider
from support.services import TIMEOUT, delivery_requested, running_sender

CONNECTIONS = 3
FLOOD = 40  # more than the sender holds
LONG = "x" * 4097
FOUR_BYTES = "\U0001f600" * 2049


def to_chat(chat: int, message: str, tenant: str) -> DeliveryRequested:
    return delivery_requested(recipient=str(chat), content=Content(message=message), tenant=tenant)


@pytest.mark.parametrize(
    ("message", "chats", "rate"),
    [(LONG, FLOOD, 0), (FOUR_BYTES, FLOOD, 0), (LONG, 10, 0), (LONG, FLOOD, 9)],
    ids=["long", "long because of its characters", "several to each chat", "as many as the rate allows"],
)
async def test_long_messages_of_one_tenant_do_not_delay_another_tenant(
    rabbit: RabbitSettings, hand: Hand, message: str, chats: int, rate: int
) -> None:
    connections = 30 if rate else CONNECTIONS
    settings = TelegramSenderSettings.model_validate({"telegram_connections": connections, "telegram_rate": rate})
    sent, over = asyncio.Event(), asyncio.Event()
    sending_long = 0

    async def answer(request: DeliveryRequested) -> str:
        nonlocal sending_long
        if request.tenant == "theirs":
            sent.set()
            return "1"
        sending_long += 1
        await over.wait()
        return "2"

    async with running_sender(rabbit, FakeProvider(answer), limits=telegram_limits(settings), provider_timeout=60):
        for number in range(FLOOD):
            await hand.request(to_chat(1 + number % chats, message, "evil"))
        await hand.request(to_chat(FLOOD + 1, "short", "theirs"))
        async with asyncio.timeout(TIMEOUT):
            await sent.wait()
        assert 0 < sending_long <= (rate or connections) / 3
        over.set()
