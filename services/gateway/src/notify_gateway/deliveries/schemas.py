"""Requests and responses of the delivery routes."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, ErrorClass, Outcome
from pydantic import BaseModel, ConfigDict, Field

from notify_gateway.http.fields import RequestModel, StoredChannel, Time


class CancelReason(StrEnum):
    """The reason for a cancellation: a request to cancel, or the user's opt-out from the channel."""

    REQUESTED = "requested"
    OPTED_OUT = "opted_out"


class AttemptView(BaseModel):
    """An attempt to send a delivery: one call to the provider."""

    number: int = Field(validation_alias="attempt")
    round: int
    outcome: Outcome
    error_class: ErrorClass | None
    error_code: str | None
    error_text: str | None = Field(None, description="The provider's error message.")
    provider_message_id: str | None
    started_at: datetime
    finished_at: datetime
    next_attempt_at: datetime | None


class DeliverySummary(BaseModel):
    """The delivery of a notification over one channel."""

    id: UUID = Field(validation_alias="delivery_id")
    channel: StoredChannel
    recipient: str | None
    status: DeliveryStatus
    reason: CancelReason | None = Field(None, description="The reason, if it was cancelled.")
    updated_at: datetime


class DeliveryOfNotification(DeliverySummary):
    """A delivery with the id of its notification."""

    notification_id: UUID
    round: int = Field(description="The current round. Each retry by an operator starts a new one.")


class DeliveryView(DeliverySummary):
    """A delivery with its latest attempts."""

    attempts: list[AttemptView] = Field(description="The last 100 attempts, in order.")
    earlier_attempts: int = Field(0, description="The number of attempts before the first of `attempts`.")


class RetryRequest(RequestModel):
    """A filter for the failed deliveries to retry. A delivery must match every field that is given."""

    channel: Channel | None = None
    error_class: ErrorClass | None = Field(None, description="The error class of the last attempt.")
    created_after: Time | None = Field(
        None,
        description="Only notifications created at or after this time. Defaults to 24 hours before `created_before`.",
    )
    created_before: Time | None = Field(
        None, description="Only notifications created before this time. Defaults to now."
    )
    dry_run: bool = Field(False, strict=True, description="Count the deliveries, but do not retry them.")


class RetryCount(BaseModel):
    """The number of deliveries that a retry job would retry."""

    count: int


class RetryJobView(BaseModel):
    """A job that retries many deliveries in the background."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    channel: StoredChannel | None
    error_class: ErrorClass | None
    retried: int = Field(description="The number of deliveries retried so far.")
    created_at: datetime
    finished_at: datetime | None
