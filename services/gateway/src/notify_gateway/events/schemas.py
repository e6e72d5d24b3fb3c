"""The query and the events of `GET /v1/events`."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus, ErrorClass
from pydantic import BaseModel, Field

from notify_gateway.http.fields import Omissible, RequestModel, StoredChannel, UserId, UserKey

# Microseconds since 1970; 17 digits keep the time within the range of `datetime`.
EventId = Annotated[str, Field(pattern=r"^[0-9]{1,17}$")]


class EventQuery(RequestModel):
    """Filters for the events. Without filters, all of the tenant's events are streamed."""

    user_id: UserKey | None = None
    notification_id: UUID | None = None
    channel: Channel | None = None
    last_event_id: EventId | None = Field(None, description="For clients that cannot set the Last-Event-ID header.")


class IntegerEventQuery(EventQuery):
    """The same, for clients that know only users whose ids are integers."""

    user_id: UserId | None = None  # type: ignore[assignment]  # the field is only read


class StatusEvent(BaseModel):
    """A delivery's new status, or another attempt to send it."""

    delivery_id: UUID
    notification_id: UUID
    user_id: str
    channel: StoredChannel
    status: DeliveryStatus
    round: int
    attempt: int
    error_class: Omissible[ErrorClass] = None
    error_code: Omissible[str] = None
    changed_at: datetime


class IntegerStatusEvent(StatusEvent):
    """The same, for clients that know only users whose ids are integers."""

    user_id: UserId  # type: ignore[assignment]  # the field is only read
