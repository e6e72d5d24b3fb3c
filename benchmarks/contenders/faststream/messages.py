"""The message from the API to the worker."""

from uuid import UUID

from pydantic import BaseModel

QUEUE = "faststream.deliveries"


class Delivery(BaseModel):
    """A notification to send."""

    id: UUID
    user_id: int
    message: str
