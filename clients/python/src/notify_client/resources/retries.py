"""Retry many failed deliveries at once, in the background."""

from datetime import datetime
from uuid import UUID

from notify_client.methods import AsyncResource, Resource, async_method, method
from notify_client.models import Channel, ErrorClass, RetryCount, RetryProgress
from notify_client.requests import Request, given, one, path


def start_retries(
    *,
    channel: Channel | None = None,
    error_class: ErrorClass | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Request[RetryProgress]:
    """Start to retry all failed deliveries that match; without `created_after`, only those of the last 24 hours."""
    body = given(channel=channel, error_class=error_class, created_after=created_after, created_before=created_before)
    return Request(method="POST", path=path("retries"), body=body, read=one(RetryProgress), idempotent=False)


def preview_retries(
    *,
    channel: Channel | None = None,
    error_class: ErrorClass | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Request[RetryCount]:
    """Return how many deliveries `create` would retry."""
    body = given(channel=channel, error_class=error_class, created_after=created_after, created_before=created_before)
    return Request(method="POST", path=path("retries", "preview"), body=body, read=one(RetryCount))


def get_retry_job(id: UUID | str) -> Request[RetryProgress]:  # noqa: A002 - the API's name
    """Return the progress of a retry, up to 30 days after it has finished."""
    return Request(method="GET", path=path("retries", id), read=one(RetryProgress))


class Retries(Resource):
    """`client.retries`."""

    create = method(start_retries)
    preview = method(preview_retries)
    get = method(get_retry_job)


class AsyncRetries(AsyncResource):
    """`client.retries`."""

    create = async_method(start_retries)
    preview = async_method(preview_retries)
    get = async_method(get_retry_job)
