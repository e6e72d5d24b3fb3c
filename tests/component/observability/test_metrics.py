"""The metrics that each service exports."""

import math
from datetime import timedelta

import httpx
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryResult, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_common.runtime.health import health_app
from notify_common.sending.errors import TemporaryFailure
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.retry_queue_depth import RetryQueueDepth
from notify_common.sending.retry_schedule import RetrySchedule
from notify_database.clock import MAX_CLOCK_OFFSET
from notify_database.engine import PostgresSettings
from notify_gateway.maintenance import MIN_PARTITIONS_AHEAD
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.amqp import Hand
from support.fakes import FakeProvider
from support.services import NOWHERE, delivery_requested, eventually, running_gateway, running_sender
from uuid_utils.compat import uuid7

LABELS = {"channel", "outcome", "error_class", "method", "route", "status", "step", "queue", "reason", "le"}


def samples(exposition: str) -> dict[tuple[str, ...], float]:
    """Return our samples, keyed by metric name and label values (in the order of the label names)."""
    found = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name.startswith("notify_"):
                assert set(sample.labels) <= LABELS
                found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


async def metrics(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    response = await client.get("http://gateway:8085/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/plain")
    return samples(response.text)


async def test_gateway_exports_request_delivery_and_outbox_metrics(api: httpx.AsyncClient) -> None:
    body = {"user_id": 1, "message": "x", "channels": ["telegram", "email"]}
    for _ in range(3):
        assert (await api.post("/api/notifications", json=body)).status_code == 201
    assert (await api.post("/api/notifications", json={})).status_code == 422
    created = (await api.get("/api/notifications")).json()["items"][0]["id"]
    await api.get(f"/api/notifications/{created}")
    await api.get("/nowhere")
    await api.delete("/api/notifications")
    exported = await metrics(api)
    count = "notify_http_request_seconds_count"
    assert exported[count, "POST", "/api/notifications", "201"] == 3
    assert exported[count, "POST", "/api/notifications", "422"] == 1
    # The label is the route, not the path; otherwise each ID would add a time series.
    assert exported[count, "GET", "/api/notifications/{id}", "200"] == 1
    assert exported[count, "none", "none", "404"] == 1
    assert exported[count, "none", "/api/notifications", "405"] == 1
    assert exported["notify_deliveries_accepted_total", "email"] == 3
    assert exported["notify_deliveries_accepted_total", "webhook"] == 0
    assert exported["notify_group_size_sum", "accept"] == 3
    assert exported["notify_outbox_rows",] == 6
    assert exported["notify_outbox_oldest_seconds",] > 0
    assert exported["notify_relay_connected",] == 0


async def test_gateway_exports_how_far_its_clock_and_the_partitions_are_ahead(postgres: PostgresSettings) -> None:
    async with running_gateway(NOWHERE, postgres) as api:

        async def is_measured() -> bool:
            return not math.isnan((await metrics(api))["notify_clock_offset_seconds",])

        await eventually(is_measured, "the clocks have been compared")
        exported = await metrics(api)
        assert abs(exported["notify_clock_offset_seconds",]) < MAX_CLOCK_OFFSET.total_seconds()
        assert exported["notify_partitions_ahead_seconds",] > MIN_PARTITIONS_AHEAD.total_seconds()


async def test_metrics_are_not_served_on_the_public_port(api: httpx.AsyncClient) -> None:
    assert (await api.get("/metrics")).status_code == 404


async def test_gateway_exports_metrics_while_its_database_is_unavailable() -> None:
    unreachable = PostgresSettings.model_validate({"postgres_host": "127.0.0.1", "postgres_port": 1})
    async with running_gateway(NOWHERE, unreachable, relaying=False) as api:
        exported = await metrics(api)
    assert math.isnan(exported["notify_outbox_rows",])
    assert math.isnan(exported["notify_clock_offset_seconds",])
    assert math.isnan(exported["notify_partitions_ahead_seconds",])


async def test_published_deliveries_are_counted(rabbit: RabbitSettings, postgres: PostgresSettings) -> None:
    async with running_gateway(rabbit, postgres) as api:
        await api.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "email"})

        async def is_published() -> bool:
            return (await metrics(api))["notify_deliveries_published_total", "email"] == 1

        await eventually(is_published, "the delivery is published")
        assert (await metrics(api))["notify_relay_connected",] == 1


async def test_sender_exports_the_number_of_waiting_retries(rabbit: RabbitSettings, hand: Hand) -> None:
    registry, delay = CollectorRegistry(), timedelta(minutes=1)

    async def refuse(_: DeliveryRequested) -> str:
        raise TemporaryFailure("no")

    async def gauge() -> float | None:
        await depth.count()
        return registry.get_sample_value("notify_retries_waiting", {"channel": "telegram"})

    async def none_waits() -> bool:
        return await gauge() == 0

    async def all_wait() -> bool:
        return await gauge() == 3

    async with running_sender(rabbit, FakeProvider(refuse), first_delay=delay) as sender:
        delays = RetrySchedule(first_delay=delay, max_attempts=3).delays
        depth = RetryQueueDepth(sender.subscriptions[0], Channel.TELEGRAM, delays, registry)
        await eventually(none_waits, "the sender is consuming and no retries are waiting")
        for _ in range(3):
            await hand.request(delivery_requested())
        await eventually(all_wait, "three retries are waiting")
    assert str(await gauge()) == "nan"


async def test_sender_exports_attempt_and_consumer_metrics(rabbit: RabbitSettings, hand: Hand) -> None:
    async with running_sender(rabbit, FakeProvider()) as sender:
        app = health_app(sender.subscriptions, sender.registry)
        await hand.request(delivery_requested())
        await hand.results(1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sender") as client:
            exported = samples((await client.get("/metrics")).text)
    assert exported["notify_attempts_total", "telegram", "", "sent"] == 1
    assert exported["notify_attempts_total", "telegram", "temporary", "retrying"] == 0
    assert exported["notify_provider_seconds_count", "telegram"] == 1
    assert exported["notify_attempts_in_flight", "telegram"] == 0
    assert exported["notify_consumer_up", "notifications.telegram"] == 1


async def test_simulated_attempts_count_apart_from_those_of_the_provider(rabbit: RabbitSettings, hand: Hand) -> None:
    # Otherwise a client that tests how failures look would trigger the alerts.
    async with running_sender(rabbit, FakeProvider()) as sender:
        await hand.request(delivery_requested(recipient="@simulator_permanent"))
        await hand.request(delivery_requested(recipient="@simulator_permanent", test=True))
        await hand.request(delivery_requested(recipient="123456789", test=True))
        await hand.request(delivery_requested(recipient="123456789"))
        await hand.results(4)
    exported = samples(generate_latest(sender.registry).decode())
    attempts = {key: count for key, count in exported.items() if key[0] == "notify_attempts_total" and count}
    assert attempts == {("notify_attempts_total", "telegram", "", "sent"): 1}
    assert exported["notify_provider_seconds_count", "telegram"] == 1
    assert exported["notify_attempts_simulated_total", "telegram"] == 3


def test_expired_delivery_does_not_count_as_a_provider_call() -> None:
    registry = CollectorRegistry()
    sender_metrics = SenderMetrics(registry, Channel.EMAIL)
    now = utc_now()
    result = DeliveryResult(
        delivery_id=uuid7(), round=1, attempt=1, failures=0, outcome=Outcome.EXPIRED, started_at=now, finished_at=now
    )
    sender_metrics.ended(result)
    assert registry.get_sample_value("notify_provider_seconds_count", {"channel": "email"}) == 0
