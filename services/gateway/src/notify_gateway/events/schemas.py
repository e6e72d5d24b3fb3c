"""What the event route takes and sends."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, ErrorClass
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from notify_gateway.http.fields import UserId

# Microseconds since 1970, up to what a `datetime` can express.
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,17}$")]


class EventQuery(BaseModel):
    """Which changes of status to hear of."""

    model_config = ConfigDict(extra="forbid")

    user_id: UserId | None = None
    notification_id: UUID | None = None
    channel: Channel | None = None
    last_event_id: EventId | None = Field(None, description="As the header Last-Event-ID, for who can not set one.")


class StatusEvent(BaseModel):
    """A delivery has a new status, or has made another attempt."""

    delivery_id: UUID
    notification_id: UUID
    user_id: UserId
    channel: Channel
    status: DeliveryStatus
    round: int
    attempt: int
    error_class: ErrorClass | None
    error_code: str | None
    changed_at: datetime
