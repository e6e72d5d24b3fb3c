"""A client of the notification service.

`Client` and `AsyncClient` send notifications and follow them; `notify_client.webhooks` verifies webhooks.
"""

from notify_client import webhooks
from notify_client.client import AsyncClient, Client
from notify_client.errors import (
    ApiError,
    AuthenticationFailed,
    ConfigurationError,
    Conflict,
    ConnectionFailed,
    IdempotencyKeyReused,
    InvalidRequest,
    InvalidWebhook,
    NotCancellable,
    NotFound,
    NotifyError,
    PermissionDenied,
    QueryTimedOut,
    RateLimited,
    ServerError,
    TimedOut,
    Unavailable,
    UnexpectedResponse,
    WaitTimedOut,
)
from notify_client.subscription import Event, Reset, StatusEvent

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationFailed",
    "Client",
    "ConfigurationError",
    "Conflict",
    "ConnectionFailed",
    "Event",
    "IdempotencyKeyReused",
    "InvalidRequest",
    "InvalidWebhook",
    "NotCancellable",
    "NotFound",
    "NotifyError",
    "PermissionDenied",
    "QueryTimedOut",
    "RateLimited",
    "Reset",
    "ServerError",
    "StatusEvent",
    "TimedOut",
    "Unavailable",
    "UnexpectedResponse",
    "WaitTimedOut",
    "webhooks",
]
