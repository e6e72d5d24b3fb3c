"""A webhook sender must stay within the memory of its container."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.service import SenderSettings
from notify_local.ports import Ports
from support.amqp import Hand, prepare_topology
from support.conformance import SECRET
from support.http_peer import HttpRequest
from support.processes import running_service
from support.servers import PROJECT
from support.services import delivery_requested
from support.webhook_peer import WebhookPeer, key
from typing_extensions import override

from benchmarks.running import peak_memory

TIMEOUT = 60.0  # seconds; reached only if the test fails
CONCURRENCY: int = SenderSettings.model_fields["concurrency"].default
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
LIMIT = int(COMPOSE["services"]["webhook_sender"]["mem_limit"].removesuffix("m"))  # MiB
# With an emoji, Python needs four bytes for each character; in JSON, each control character has six bytes.
LONGEST = Content(message="\N{GRINNING FACE}" + "\x01" * 16_383)


class SlowReceiver(WebhookPeer):
    """A receiver that fails as many webhooks as a sender may hold, once it has received all of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.full = asyncio.Semaphore(0)
        """Released each time that all webhooks have been received."""
        self._all_received = asyncio.Barrier(CONCURRENCY)

    @override
    async def answer(self, request: HttpRequest) -> tuple[int, dict[str, str], bytes]:
        if await self._all_received.wait() == 0:
            self.full.release()
        return 500, {}, b""


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[SlowReceiver]:
    receiver = SlowReceiver(tmp_path)
    await receiver.open()
    yield receiver
    await receiver.close()


async def test_sender_full_of_the_longest_webhooks_stays_well_below_its_memory_limit(
    rabbit: RabbitSettings, hand: Hand, receiver: SlowReceiver
) -> None:
    await prepare_topology(rabbit, [topology.deliveries(Channel.WEBHOOK)])
    settings = receiver.settings(
        key(SECRET),
        **rabbit.model_dump(exclude_unset=True),
        health_port=Ports().free(18_900),
        allow_insecure=True,
        log_level="ERROR",
        provider_timeout=TIMEOUT,
        webhook_calls_per_host=CONCURRENCY,
        webhook_calls_per_domain=CONCURRENCY,
        webhook_calls_per_tenant=CONCURRENCY,
    )
    requests = [
        delivery_requested(channel=Channel.WEBHOOK, recipient=receiver.recipient, content=LONGEST)
        for _ in range(CONCURRENCY)
    ]
    with running_service("webhook_sender", settings) as sender:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*map(hand.request, requests))
            for _ in ("first attempt", "retry"):
                await receiver.full.acquire()
        assert peak_memory(sender.pid) < 3 / 4 * LIMIT
