"""The routes under `/v1/notifications`."""

from functools import partial
from typing import Annotated, NoReturn
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Response

from notify_gateway.deliveries.filters import METADATA_PARAMETER
from notify_gateway.errors import CancellationRejected
from notify_gateway.http.authentication import AuthenticatedRoute, CanCancel, CanRead, CanSend
from notify_gateway.http.dependencies import provided
from notify_gateway.http.json_lists import json_page
from notify_gateway.http.problem_codes import ProblemCode
from notify_gateway.http.problems import COMMON_PROBLEMS, documented, found
from notify_gateway.notifications import schemas
from notify_gateway.notifications.cancel import NotificationCanceller, posted_with
from notify_gateway.notifications.idempotency import IdempotencyKey
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.visibility import notification_visible_to

PREFIX = "/v1/notifications"
router = APIRouter(prefix=PREFIX, tags=["notifications"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)
# This router only documents the route: `http_api.py` passes the requests to `endpoint.py`, bypassing FastAPI.
# It requires a key all the same, in case a request ever reaches it.
bypassed_router = APIRouter(
    prefix=PREFIX, tags=["notifications"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute
)

Queries = Annotated[NotificationQueries, Depends(provided(NotificationQueries))]
Canceller = Annotated[NotificationCanceller, Depends(provided(NotificationCanceller))]
NotificationId = Annotated[UUID, Path(alias="id")]
LOCATION = {"Location": {"description": "The URL of the notification.", "schema": {"type": "string"}}}


@bypassed_router.post(
    "",
    status_code=201,
    response_model=schemas.CreatedNotification,
    responses={
        201: {"headers": LOCATION},
        **documented(400, 422, ProblemCode.IDEMPOTENCY_KEY_REUSED, 503, ProblemCode.OVERLOADED),
    },
)
async def create_notification(
    body: Annotated[schemas.NotificationRequest, Body(openapi_examples=schemas.EXAMPLE_REQUESTS)],  # noqa: ARG001
    _: CanSend,
    idempotency_key: Annotated[  # noqa: ARG001
        IdempotencyKey | None,
        Header(description="Makes retries safe: for 24 hours, the same key gets the response to the first request."),
    ] = None,
) -> NoReturn:
    """Create a notification.

    The notification is stored durably before the response is returned, and is then delivered over each of its channels.
    Deliveries that fail temporarily are retried.
    """
    raise HTTPException(404)


@router.get(
    "",
    response_model=schemas.NotificationPage,
    responses=documented(422, 504),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
async def list_notifications(
    query: Annotated[schemas.ListQuery, Query()], principal: CanRead, queries: Queries, response: Response
) -> Response:
    """List notifications, newest first.

    Filter by user, reference, status, channel, creation time or metadata. To get the next page, pass `next_cursor` as
    `cursor`. A page with large notifications ends after about 4 MB, before it has `limit` of them.
    """
    page = await queries.page(principal.tenant, query)
    visible = partial(notification_visible_to, principal)
    return await json_page(page.items, visible, page.next_cursor, response)


@router.get("/{id}", response_model_exclude_none=True, responses=documented(404, 422, 504))
async def get_notification(id_: NotificationId, principal: CanRead, queries: Queries) -> schemas.Notification:
    """Retrieve a notification with its deliveries and their attempts."""
    notification = found(await queries.get(principal.tenant, id_), f"There is no notification {id_}.")
    return notification_visible_to(principal, notification)


@router.post(
    "/{id}/cancel",
    response_model_exclude_none=True,
    responses={
        **documented(404, 422, 504),
        **documented(ProblemCode.NOT_CANCELLABLE, model=schemas.CancellationProblem),
    },
)
async def cancel_notification(
    id_: NotificationId, principal: CanCancel, queries: Queries, canceller: Canceller
) -> schemas.Notification:
    """Cancel those deliveries of a notification that have not started yet.

    If any delivery has already started or finished, the response is a 409 that lists all deliveries. Those that had not
    started are cancelled anyway.

    A key with the scope `send` but without `admin` can cancel only what was posted with this very key. All other
    notifications are a 404, as if they did not exist.
    """

    async def read() -> schemas.Notification:
        stored = await queries.get(principal.tenant, id_, posted_with=posted_with(principal))
        return notification_visible_to(principal, found(stored, f"There is no notification {id_}."))

    await read()
    await canceller.cancel(principal.tenant, id_)
    notification = await read()
    if not notification.is_cancelled:
        deliveries = [
            each.model_dump(mode="json", exclude_none=True, exclude={"attempts", "earlier_attempts"})
            for each in notification.deliveries
        ]
        raise CancellationRejected(deliveries)
    return notification
