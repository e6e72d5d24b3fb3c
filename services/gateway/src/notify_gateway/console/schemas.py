"""The responses of the console's routes."""

from datetime import datetime
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import ErrorClass
from pydantic import BaseModel, Field

from notify_gateway.http.fields import Omissible, StoredChannel


class SecondsOverview(BaseModel):
    """The number of deliveries in each second; the last is the second before `at`.

    Status changes are counted only while the overview is being read, so that their lists are shorter at first.
    """

    accepted: list[int]
    sent: list[int]
    retrying: list[int]
    failed: list[int]


class ChannelOverview(BaseModel):
    """The rates, backlog and latency of a channel; the queue counts are left out if RabbitMQ does not report them."""

    channel: Channel
    waiting: Omissible[int] = Field(None, description="Messages in the channel's queue.")
    in_flight: Omissible[int] = Field(None, description="Messages that senders have not yet acknowledged.")
    retrying: Omissible[int] = Field(None, description="Messages in the channel's retry queues.")
    consumers: Omissible[int] = None
    latency_p50: Omissible[float] = Field(
        None, description="Median of the last 2,000, in seconds from acceptance to sending."
    )
    latency_p95: Omissible[float] = None
    seconds: SecondsOverview


class Failures(BaseModel):
    """A group of failed deliveries with the same channel and error, among the newest 10,000 deliveries."""

    channel: StoredChannel
    error_class: Omissible[ErrorClass] = None
    error_code: Omissible[str] = None
    count: int
    last_at: datetime
    last_notification_id: UUID


class ServiceOverview(BaseModel):
    """The state of the whole service across all tenants."""

    at: datetime = Field(description="The end of the last second that the rates cover.")
    live: bool = Field(description="True if this gateway receives status changes from RabbitMQ.")
    rabbitmq_connected: bool = Field(description="True if this gateway's outbox relay is connected to RabbitMQ.")
    outbox_rows: int = Field(description="Due deliveries that RabbitMQ has not confirmed; counted up to 100,000.")
    outbox_oldest_seconds: float
    results_waiting: Omissible[int] = None
    dead_letters: Omissible[int] = None
    channels: list[ChannelOverview]
    failures: list[Failures]


class ConsoleLinks(BaseModel):
    """The URLs of other tools that the console links to, as far as they are configured."""

    rabbitmq: Omissible[str] = None
    trace: Omissible[str] = Field(None, description="A URL in which `{trace_id}` stands for the trace id.")
