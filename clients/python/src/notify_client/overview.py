"""The figures in the console's overview, which need the scope `operator`."""

from datetime import datetime
from uuid import UUID

from notify_client.models import Channel, ErrorClass, Model


class SecondsOverview(Model):
    """Deliveries in each of the last seconds. The lists end with the newest; at first some are shorter."""

    accepted: list[int]
    sent: list[int]
    retrying: list[int]
    failed: list[int]


class ChannelOverview(Model):
    """One channel. A figure is None while RabbitMQ does not provide it."""

    channel: Channel
    waiting: int | None = None
    """Messages in the channel's queue."""
    in_flight: int | None = None
    """Messages that senders have not yet acknowledged."""
    retrying: int | None = None
    """Messages in the channel's retry queues."""
    consumers: int | None = None
    latency_p50: float | None = None
    """Median of the last 2,000, in seconds from acceptance to sending."""
    latency_p95: float | None = None
    seconds: SecondsOverview


class Failures(Model):
    """Recent failures with the same cause."""

    channel: Channel
    error_class: ErrorClass | None = None
    error_code: str | None = None
    count: int
    last_at: datetime
    last_notification_id: UUID


class ServiceOverview(Model):
    """All tenants together, as this gateway sees them."""

    at: datetime
    """The end of the last second that the rates cover."""
    live: bool
    """True if this gateway receives status changes from RabbitMQ."""
    rabbitmq_connected: bool
    """True if this gateway's outbox relay is connected to RabbitMQ."""
    outbox_rows: int
    """Due deliveries that RabbitMQ has not confirmed; counted up to 100,000."""
    outbox_oldest_seconds: float
    results_waiting: int | None = None
    dead_letters: int | None = None
    channels: list[ChannelOverview]
    failures: list[Failures]


class ConsoleLinks(Model):
    """The links of the console."""

    rabbitmq: str | None = None
    trace: str | None = None
    """A URL in which `{trace_id}` stands for the trace id."""
