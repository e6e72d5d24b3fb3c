"""What the console's routes return."""

from datetime import datetime
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import ErrorClass
from pydantic import BaseModel, Field


class SecondsOverview(BaseModel):
    """How many deliveries, second by second; null where nobody has looked."""

    accepted: list[int]
    sent: list[int | None]
    retrying: list[int | None]
    failed: list[int | None]


class ChannelOverview(BaseModel):
    """What happens on one channel. What RabbitMQ does not tell is null."""

    channel: Channel
    waiting: int | None = Field(description="Messages in the channel's queue.")
    in_flight: int | None = Field(description="Messages that senders have.")
    retrying: int | None = Field(description="Messages in its retry queues.")
    consumers: int | None
    latency_p50: float | None = Field(description="Seconds from acceptance to sent, of the last 2,000.")
    latency_p95: float | None
    seconds: SecondsOverview


class Failures(BaseModel):
    """Failed deliveries of one kind, among the newest 10,000 deliveries."""

    channel: Channel
    error_class: ErrorClass | None
    error_code: str | None
    count: int
    last_at: datetime
    last_notification_id: UUID


class OverviewView(BaseModel):
    """The whole service, of all tenants: numbers, and no content."""

    at: datetime = Field(description="The end of the last of the seconds.")
    live: bool = Field(description="Whether changes of status are heard from RabbitMQ.")
    rabbitmq_connected: bool = Field(description="Whether the outbox relay of this gateway is connected.")
    outbox_rows: int = Field(description="Deliveries that are due and not confirmed by RabbitMQ, 100,000 at most.")
    outbox_oldest_seconds: float
    results_waiting: int | None
    dead_letters: int | None
    channels: list[ChannelOverview]
    failures: list[Failures]


class ConsoleLinks(BaseModel):
    """Where the console leads to."""

    rabbitmq: str | None
    trace: str | None = Field(description="With `{trace_id}` in it.")
