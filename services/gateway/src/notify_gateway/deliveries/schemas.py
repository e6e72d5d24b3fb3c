"""What the delivery routes take and return."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, ErrorClass, Outcome
from pydantic import BaseModel, ConfigDict, Field

from notify_gateway.http.fields import Time


class CancelReason(StrEnum):
    """Why a delivery was cancelled: by a request, or because the user has opted out of its channel."""

    REQUESTED = "requested"
    OPTED_OUT = "opted_out"


class AttemptView(BaseModel):
    """One call of the provider."""

    number: int = Field(validation_alias="attempt")
    round: int
    outcome: Outcome
    error_class: ErrorClass | None
    error_code: str | None
    error_text: str | None = Field(None, description="In the provider's own words.")
    provider_message_id: str | None
    started_at: datetime
    finished_at: datetime
    next_attempt_at: datetime | None


class DeliverySummary(BaseModel):
    """The notification over one channel."""

    id: UUID
    channel: Channel
    recipient: str | None
    status: DeliveryStatus
    reason: CancelReason | None = Field(None, description="Why it was cancelled.")
    updated_at: datetime


class DeliveryOfNotification(DeliverySummary):
    """A delivery that was asked for by its own id."""

    notification_id: UUID


class DeliveryView(DeliverySummary):
    """The notification over one channel, with every attempt."""

    attempts: list[AttemptView]


class RetryRequest(BaseModel):
    """Which failed deliveries to try again: all that match, of the tenant."""

    model_config = ConfigDict(extra="forbid")

    channel: Channel | None = None
    error_class: ErrorClass | None = Field(None, description="Of the last attempt.")
    created_after: Time | None = Field(
        None, description="Of the notification, inclusive. Without it: the 24 hours before created_before, or now."
    )
    created_before: Time | None = Field(None, description="Exclusive. Without it: now.")
    dry_run: bool = Field(False, strict=True, description="Only count.")


class RetryCount(BaseModel):
    """How many deliveries a retry would take."""

    count: int


class RetryJobView(BaseModel):
    """A retry of many: it goes on in the background, through crashes, until it is finished."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    channel: Channel | None
    error_class: ErrorClass | None
    retried: int = Field(description="Deliveries put back so far.")
    created_at: datetime
    finished_at: datetime | None
