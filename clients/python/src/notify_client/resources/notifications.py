"""Send notifications, and read what has become of them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID, uuid4

from typing_extensions import TypedDict  # pydantic requires this one before Python 3.12

from notify_client.errors import InvalidRequest, WaitTimedOut
from notify_client.methods import AsyncResource, Resource, async_listing, async_method, listing, method
from notify_client.models import (
    Channel,
    CreatedNotification,
    Expansion,
    FieldProblem,
    Notification,
    NotificationStatus,
    Page,
    Problem,
)
from notify_client.requests import Request, given, metadata_filters, one, page, path

FIRST_POLL, LONGEST_POLL = 0.1, 2.0  # seconds between two requests of `wait`


class Recipients(TypedDict, total=False):
    """The recipient on each channel."""

    telegram: str | None
    email: str | None
    webhook: str | None


class EmailOptions(TypedDict, total=False):
    """The parts of an e-mail besides its text."""

    html: str | None
    reply_to: str | None
    list_unsubscribe: str | None


class Overrides(TypedDict, total=False):
    """The content that differs on single channels."""

    email: EmailOptions | None


def create_notification(
    *,
    user_id: str,
    channels: Sequence[Channel],
    message: str,
    subject: str | None = None,
    to: Recipients | None = None,
    overrides: Overrides | None = None,
    reference: str | None = None,
    metadata: Mapping[str, str] | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | UUID | None = None,
) -> Request[CreatedNotification]:
    """Send a notification. When this returns, the gateway has stored it.

    Within 24 hours, calls with the same `idempotency_key` create one notification. Without one, each call has a new
    key, which makes the retries within the call safe.
    """
    body = given(
        user_id=user_id,
        channels=channels,
        message=message,
        subject=subject,
        to=to,
        overrides=overrides,
        reference=reference,
        metadata=metadata,
        send_at=send_at,
        expires_at=expires_at,
    )
    return Request(
        method="POST",
        path=path("notifications"),
        body=body,
        read=one(CreatedNotification),
        idempotency_key=_header(uuid4() if idempotency_key is None else idempotency_key),
    )


def _header(idempotency_key: str | UUID) -> str:
    """Return the key; raise `InvalidRequest` if no header can contain it. Without a key, repeats would not be safe."""
    key = str(idempotency_key)
    if not (key and key.isascii() and key.isprintable()):
        field, detail = "idempotency-key", "must consist of printable ASCII characters, at least one"
        problem = FieldProblem(location="header", field=field, detail=detail)
        raise InvalidRequest(
            Problem(title="", status=422, code="invalid_request", detail=f"{field}: {detail}", errors=[problem])
        )
    return key


def get_notification(id: UUID | str) -> Request[Notification]:  # noqa: A002 - the API's name
    """Return a notification with its deliveries and their attempts."""
    return Request(method="GET", path=path("notifications", id), read=one(Notification))


def list_notifications(
    *,
    user_id: str | None = None,
    reference: str | None = None,
    status: NotificationStatus | Sequence[NotificationStatus] | None = None,
    channel: Channel | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    expand: Sequence[Expansion] | None = None,
    page_size: int | None = None,
    cursor: UUID | str | None = None,
) -> Request[Page[Notification]]:
    """Iterate over notifications, newest first.

    Without `user_id`, `reference` and `created_after`, the list covers the 24 hours before `created_before`, or before
    now. `expand` adds the `attempts` or the `content`.
    """
    query = given(
        user_id=user_id,
        reference=reference,
        status=status,
        channel=channel,
        created_after=created_after,
        created_before=created_before,
        expand=expand,
        limit=page_size,
        cursor=cursor,
    )
    query |= metadata_filters(metadata)
    return Request(method="GET", path=path("notifications"), query=query, read=page(Notification))


def cancel_notification(id: UUID | str) -> Request[Notification]:  # noqa: A002 - the API's name
    """Cancel all deliveries that have not started. If there are others, this raises `NotCancellable`."""
    return Request(method="POST", path=path("notifications", id, "cancel"), read=one(Notification))


class _Polls:
    """The requests of one `wait`. The waits between them grow."""

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._wait = FIRST_POLL

    def wait_for(self, notification: Notification) -> float:
        """Return the seconds until the next request; raise `WaitTimedOut` if there is no time for another one."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise WaitTimedOut(notification)
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_POLL)
        return min(wait, remaining)


class Notifications(Resource):
    """`client.notifications`."""

    create = method(create_notification)
    get = method(get_notification)
    list = listing(list_notifications)
    cancel = method(cancel_notification)

    def wait(self, id: UUID | str, timeout: float = 60.0) -> Notification:  # noqa: A002 - the API's name
        """Return the notification once all its deliveries are final.

        Raises `WaitTimedOut`, which contains the notification as it is, after about `timeout` seconds.
        """
        polls = _Polls(timeout)
        while not (notification := self._client.send(get_notification(id))).is_final:
            time.sleep(polls.wait_for(notification))
        return notification


class AsyncNotifications(AsyncResource):
    """`client.notifications`."""

    create = async_method(create_notification)
    get = async_method(get_notification)
    list = async_listing(list_notifications)
    cancel = async_method(cancel_notification)

    async def wait(self, id: UUID | str, timeout: float = 60.0) -> Notification:  # noqa: A002 - the API's name
        """Return the notification once all its deliveries are final.

        Raises `WaitTimedOut`, which contains the notification as it is, after about `timeout` seconds.
        """
        polls = _Polls(timeout)
        while not (notification := await self._client.send(get_notification(id))).is_final:  # noqa: ASYNC110 - remote
            await asyncio.sleep(polls.wait_for(notification))
        return notification
