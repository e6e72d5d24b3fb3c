"""Webhooks of tenants whose receivers never respond must not delay those of other tenants."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, ErrorClass, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_webhook_sender.limits import webhook_limits
from notify_webhook_sender.settings import WebhookSenderSettings
from notify_webhook_sender.webhook import Webhook
from support.amqp import Hand
from support.conformance import SECRET
from support.http_peer import HttpPeer, HttpRequest
from support.services import delivery_requested, eventually, running_sender
from support.webhook_peer import key
from typing_extensions import override

CONCURRENCY = 6
PROVIDER_TIMEOUT = 60.0  # seconds
ALLOWED = 3  # calls of the tenant or to the domain


class HangingReceiver(HttpPeer):
    """A receiver under every name below `localhost`; it responds to no URL that contains `evil`."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging = self.most_hanging = 0

    def recipient(self, host: str, path: str = "") -> str:
        return f"http://{host}.localhost:{self._port}/{path}"

    @override
    async def answer(self, request: HttpRequest) -> tuple[int, dict[str, str], bytes]:
        if "evil" in request.headers["host"] or "evil" in request.path:
            self.hanging += 1
            self.most_hanging = max(self.hanging, self.most_hanging)
            try:
                await asyncio.Event().wait()
            finally:
                self.hanging -= 1
        return 204, {}, b""


@pytest.fixture
async def receiver() -> AsyncIterator[HangingReceiver]:
    receiver = HangingReceiver()
    await receiver.open()
    yield receiver
    await receiver.close()


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({}, 250),
        ({"concurrency": 100}, 50),
        ({"concurrency": 1}, 1),
        ({"webhook_calls_per_tenant": 30}, 30),
        ({"webhook_calls_per_tenant": 500}, 500),
    ],
)
def test_tenant_occupies_half_a_sender_unless_configured_otherwise(given: dict[str, Any], calls: int) -> None:
    limits = webhook_limits(WebhookSenderSettings.model_validate(given))
    request = delivery_requested(channel=Channel.WEBHOOK, tenant="theirs", recipient="https://hooks.example.org/")
    [found] = [quota.calls for quota in limits.quotas_of(request) if quota.name == "tenant theirs"]
    assert found == calls


@pytest.mark.parametrize(
    ("failing", "working"),
    [
        ("https://hooks.example.org:0/", "https://hooks.example.org/"),
        ("https://hooks.example.org./", "https://hooks.example.org/"),
        ("https://hooks.internal:8080/", "http://hooks.internal:8080/"),
        ("http://hooks.example.org:8443/", "https://hooks.example.org:8443/"),
    ],
)
def test_calls_that_always_fail_do_not_count_as_failures_of_the_host(failing: str, working: str) -> None:
    provider_of = webhook_limits(WebhookSenderSettings()).provider_of
    assert provider_of(failing) != provider_of(working)


def test_final_dot_does_not_evade_the_limit_of_a_domain() -> None:
    limits = webhook_limits(WebhookSenderSettings())
    with_dot, without = (
        {quota.name for quota in limits.quotas_of(delivery_requested(channel=Channel.WEBHOOK, recipient=url))}
        for url in ("https://hooks.example.org./", "https://hooks.example.org/")
    )
    assert {name for name in with_dot ^ without if name.startswith("domain")} == set()


@pytest.mark.parametrize(
    ("hosts", "limit"),
    [
        ([f"h{number}.evil" for number in range(20)], {"webhook_calls_per_domain": ALLOWED}),
        ([f"evil{number}" for number in range(20)], {"webhook_calls_per_tenant": ALLOWED}),
        (["hooks.shared"] * 20, {"webhook_calls_per_host": ALLOWED}),
        ([f"h{number}.shared" for number in range(20)], {"webhook_calls_per_domain": ALLOWED}),
    ],
    ids=["many hosts of one domain", "many domains", "the host of both", "many hosts of the domain of both"],
)
async def test_hanging_receivers_of_one_tenant_do_not_delay_another_tenant(
    rabbit: RabbitSettings, hand: Hand, receiver: HangingReceiver, hosts: list[str], limit: dict[str, Any]
) -> None:
    settings = WebhookSenderSettings.model_validate(
        {
            "webhook_provider": "http",
            "webhook_secrets": key(SECRET),
            "webhook_allowed_networks": "127.0.0.0/8 ::1/128",
            **limit,
        }
    )

    def request(tenant: str, host: str, path: str = "") -> DeliveryRequested:
        return delivery_requested(channel=Channel.WEBHOOK, tenant=tenant, recipient=receiver.recipient(host, path))

    async def full() -> bool:
        return receiver.hanging >= ALLOWED

    async with running_sender(
        rabbit,
        Webhook(settings),
        channel=Channel.WEBHOOK,
        limits=webhook_limits(settings),
        concurrency=CONCURRENCY,
        provider_timeout=60,
    ):
        for host in hosts:
            await hand.request(request("theirs", host, "evil"))
        await eventually(full, "as many receivers hang as are allowed to")
        ours = request("ours", "hooks.shared")
        await hand.request(ours)
        [result] = await hand.results(1)
        assert (result.delivery_id, result.outcome) == (ours.delivery_id, Outcome.SENT)
        assert receiver.most_hanging == ALLOWED
        await receiver.close()


async def test_hanging_receiver_of_one_tenant_does_not_keep_the_circuit_of_a_shared_host_open(
    rabbit: RabbitSettings, hand: Hand, receiver: HangingReceiver
) -> None:
    settings = WebhookSenderSettings.model_validate(
        {
            "webhook_provider": "http",
            "webhook_secrets": key(SECRET),
            "webhook_allowed_networks": "127.0.0.0/8 ::1/128",
            "provider_timeout": PROVIDER_TIMEOUT,
        }
    )
    # The webhook that is to be sent waits for the trial call to end, instead of in a retry queue.
    limits = replace(
        webhook_limits(settings), admission_timeout=timedelta(seconds=60), connect_timeout=timedelta(milliseconds=500)
    )
    theirs, ours = (
        delivery_requested(channel=Channel.WEBHOOK, tenant=tenant, recipient=receiver.recipient("hooks.shared", path))
        for tenant, path in (("theirs", "evil"), ("ours", ""))
    )

    async def hanging() -> bool:
        return receiver.hanging > 0

    await receiver.close()
    async with running_sender(
        rabbit, Webhook(settings), channel=Channel.WEBHOOK, limits=limits, provider_timeout=PROVIDER_TIMEOUT
    ):
        await hand.request(theirs)
        [result] = await hand.results(1)
        assert result.error_class is ErrorClass.UNREACHABLE
        await receiver.open()
        await eventually(hanging, "the trial call hangs")
        await hand.request(ours)
        [result] = await hand.results(1)
        assert (result.delivery_id, result.outcome) == (ours.delivery_id, Outcome.SENT)
        await receiver.close()
