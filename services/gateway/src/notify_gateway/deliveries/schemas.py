"""Requests and responses of the delivery routes."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, ErrorClass, Outcome
from pydantic import BaseModel, ConfigDict, Field

from notify_gateway.deliveries.filters import NotificationFilter
from notify_gateway.http.fields import Omissible, RequestModel, StoredChannel, Time

OF_LAST_ATTEMPT = "The error class of the last attempt."
EXAMPLE_FILTERS: dict[str, Any] = {
    "one error": {"value": {"channel": "telegram", "error_class": "permanent"}},
    "a period": {"value": {"created_after": "2027-01-31T08:00:00Z", "created_before": "2027-01-31T09:00:00Z"}},
}
LAST_ERROR = "The last attempt's, unless it succeeded."


class CancelReason(StrEnum):
    """The reason for a cancellation: a request to cancel, or the user's opt-out from the channel."""

    REQUESTED = "requested"
    OPTED_OUT = "opted_out"


class Attempt(BaseModel):
    """An attempt to send a delivery: one call to the provider."""

    number: int = Field(validation_alias="attempt")
    round: int
    outcome: Outcome
    error_class: Omissible[ErrorClass] = None
    error_code: Omissible[str] = None
    error_text: Omissible[str] = Field(None, description="The provider's error message.")
    provider_message_id: Omissible[str] = None
    started_at: datetime
    finished_at: datetime
    next_attempt_at: Omissible[datetime] = None


class DeliverySummary(BaseModel):
    """The delivery of a notification over one channel."""

    id: UUID = Field(validation_alias="delivery_id")
    channel: StoredChannel
    recipient: Omissible[str] = None
    status: DeliveryStatus
    reason: Omissible[CancelReason] = Field(None, description="The reason, if it was cancelled.")
    updated_at: datetime


class NotificationDelivery(DeliverySummary):
    """A delivery with its latest attempts."""

    attempts: Omissible[list[Attempt]] = Field(None, description="The last 100 attempts, in order.")
    earlier_attempts: Omissible[int] = Field(None, description="The number of attempts before the first of `attempts`.")


class Delivery(NotificationDelivery):
    """A delivery with the id of its notification."""

    notification_id: UUID
    user_id: str
    round: int = Field(description="The current round. Each retry by an operator starts a new one.")
    error_class: Omissible[ErrorClass] = Field(None, description=LAST_ERROR)
    error_code: Omissible[str] = Field(None, description=LAST_ERROR)
    message: Omissible[str] = None
    subject: Omissible[str] = None


class DeliveryPage(BaseModel):
    """A page of deliveries. Those of newer notifications come first."""

    items: list[Delivery]
    next_cursor: Omissible[UUID] = Field(None, description="The `cursor` of the next page, if there is one.")
    has_more: bool


class DeliveryQuery(NotificationFilter):
    """A filter for deliveries."""

    status: list[DeliveryStatus] = Field([], max_length=len(DeliveryStatus))
    error_class: ErrorClass | None = Field(None, description=OF_LAST_ATTEMPT)
    channel: Channel | None = None


CREATED_AFTER = "Only notifications created at or after this time. Defaults to 24 hours before `created_before`."
CREATED_BEFORE = "Only notifications created before this time. Defaults to now."


class RetryFilter(RequestModel):
    """A filter for the failed deliveries to retry. A delivery must match every field that is given."""

    channel: Channel | None = None
    error_class: ErrorClass | None = Field(None, description=OF_LAST_ATTEMPT)
    created_after: Time | None = Field(None, description=CREATED_AFTER)
    created_before: Time | None = Field(None, description=CREATED_BEFORE)


class RetryCount(BaseModel):
    """The number of deliveries that a retry job would retry."""

    count: int


class RetryProgress(BaseModel):
    """A job that retries many deliveries in the background."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    channel: Omissible[StoredChannel] = None
    error_class: Omissible[ErrorClass] = None
    retried: int = Field(description="The number of deliveries retried so far.")
    created_at: datetime
    finished_at: Omissible[datetime] = None
