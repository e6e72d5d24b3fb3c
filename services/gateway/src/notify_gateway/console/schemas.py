"""The responses of the console's routes."""

from datetime import datetime
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import ErrorClass
from pydantic import BaseModel, Field

from notify_gateway.http.fields import StoredChannel


class SecondsOverview(BaseModel):
    """The number of deliveries in each second; null for each second before counting began."""

    accepted: list[int]
    sent: list[int | None]
    retrying: list[int | None]
    failed: list[int | None]


class ChannelOverview(BaseModel):
    """The rates, backlog and latency of a channel; the queue counts are null if RabbitMQ does not report them."""

    channel: Channel
    waiting: int | None = Field(description="Messages in the channel's queue.")
    in_flight: int | None = Field(description="Messages that senders have not yet acknowledged.")
    retrying: int | None = Field(description="Messages in the channel's retry queues.")
    consumers: int | None
    latency_p50: float | None = Field(description="Median of the last 2,000, in seconds from acceptance to sending.")
    latency_p95: float | None
    seconds: SecondsOverview


class Failures(BaseModel):
    """A group of failed deliveries with the same channel and error, among the newest 10,000 deliveries."""

    channel: StoredChannel
    error_class: ErrorClass | None
    error_code: str | None
    count: int
    last_at: datetime
    last_notification_id: UUID


class OverviewView(BaseModel):
    """The state of the whole service across all tenants."""

    at: datetime = Field(description="The end of the last second that the rates cover.")
    live: bool = Field(description="True if this gateway receives status changes from RabbitMQ.")
    rabbitmq_connected: bool = Field(description="True if this gateway's outbox relay is connected to RabbitMQ.")
    outbox_rows: int = Field(description="Due deliveries that RabbitMQ has not confirmed; counted up to 100,000.")
    outbox_oldest_seconds: float
    results_waiting: int | None
    dead_letters: int | None
    channels: list[ChannelOverview]
    failures: list[Failures]


class ConsoleLinks(BaseModel):
    """The URLs of other tools that the console links to."""

    rabbitmq: str | None
    trace: str | None = Field(description="A URL in which `{trace_id}` stands for the trace id.")
