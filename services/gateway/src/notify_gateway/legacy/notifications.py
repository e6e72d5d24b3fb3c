"""The routes under `/api/notifications`."""

from functools import partial
from typing import Annotated, NoReturn
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Response

from notify_gateway.errors import CancellationRejected
from notify_gateway.http.authentication import AuthenticatedRoute, CanCancel, CanRead, CanSend
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserId
from notify_gateway.http.json_lists import json_array, json_response
from notify_gateway.http.principal import Principal
from notify_gateway.http.problems import LEGACY_PROBLEMS, Problem, documented, found
from notify_gateway.legacy import schemas
from notify_gateway.notifications.cancel import NotificationCanceller, posted_with
from notify_gateway.notifications.idempotency import IdempotencyKey
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.schemas import Notification
from notify_gateway.notifications.visibility import notification_visible_to

USER_LIST_LIMIT = 1000
PREFIX = "/api/notifications"
router = APIRouter(
    prefix=PREFIX, tags=["notifications"], responses=LEGACY_PROBLEMS, route_class=AuthenticatedRoute, deprecated=True
)
# This router only documents the route: `http_api.py` passes the requests to `endpoint.py`, bypassing FastAPI.
# It requires a key all the same, in case a request ever reaches it.
bypassed_router = APIRouter(
    prefix=PREFIX, tags=["notifications"], responses=LEGACY_PROBLEMS, route_class=AuthenticatedRoute, deprecated=True
)

Queries = Annotated[NotificationQueries, Depends(provided(NotificationQueries))]
Canceller = Annotated[NotificationCanceller, Depends(provided(NotificationCanceller))]
NotificationOrList = schemas.LegacyNotification | list[schemas.LegacyNotificationSummary]
NotificationId = Annotated[UUID, Path(alias="id")]


@bypassed_router.post("/", status_code=201, response_model=schemas.LegacyNotification, include_in_schema=False)
@bypassed_router.post(
    "", status_code=201, response_model=schemas.LegacyNotification, responses=documented(400, 422, model=Problem)
)
async def create_notification(
    body: Annotated[schemas.LegacyNotificationRequest, Body(openapi_examples=schemas.EXAMPLE_REQUESTS)],  # noqa: ARG001
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


@router.get("/", response_model=schemas.LegacyNotificationPage, include_in_schema=False)
@router.get("", response_model=schemas.LegacyNotificationPage, responses=documented(422, 504, model=Problem))
async def list_notifications(
    query: Annotated[schemas.ListQuery, Query()], principal: CanRead, queries: Queries, response: Response
) -> Response:
    """List notifications, newest first.

    Filter by user, status, channel or creation time. To get the next page, pass `next_cursor` as `cursor`. A page with
    large notifications ends after about 4 MB, before it has `limit` of them.
    """
    page = await queries.page(principal.tenant, query.current(), integer_users=True)
    items = await json_array(page.items, partial(_summary, principal), exclude_none=False)
    cursor = b"null" if page.next_cursor is None else b'"%b"' % str(page.next_cursor).encode()
    return json_response(b'{"items":%b,"next_cursor":%b}' % (items, cursor), response)


@router.get("/{id}/", response_model=NotificationOrList, include_in_schema=False)
@router.get("/{id}", response_model=NotificationOrList, responses=documented(404, 409, 422, 504, model=Problem))
async def get_notification(
    id_: Annotated[UUID | UserId, Path(alias="id", description="A notification id (UUID) or a user id (integer).")],
    query: Annotated[schemas.UserListQuery, Query()],
    principal: CanRead,
    queries: Queries,
    response: Response,
) -> schemas.LegacyNotification | Response:
    """Retrieve a notification with its deliveries and their attempts.

    If `id` is a user id, the response is instead a list of the user's latest notifications, newest first:
    at most 1,000, or as many as fit into about 4 MB.

    Clients of the first version of this API rely on this; new clients should list notifications by `user_id`.
    """
    if isinstance(id_, int):
        of_user = schemas.ListQuery(user_id=id_, status=query.status).current()
        of_user = of_user.model_copy(update={"limit": USER_LIST_LIMIT})  # more than a page may have
        page = await queries.page(principal.tenant, of_user)
        items = await json_array(page.items, partial(_summary, principal), exclude_none=False)
        return json_response(items, response)
    if query.status is not None:
        raise HTTPException(422, "status: is supported only with a user id")
    notification = found(await queries.get(principal.tenant, id_), f"There is no notification {id_}.")
    if not schemas.has_integer_user(notification):
        raise HTTPException(409, schemas.NO_INTEGER)
    return schemas.view(notification_visible_to(principal, notification))


@router.post(
    "/{id}/cancel",
    responses={**documented(404, 422, 504, model=Problem), **documented(409, model=schemas.LegacyCancellationProblem)},
)
async def cancel_notification(
    id_: NotificationId, principal: CanCancel, queries: Queries, canceller: Canceller
) -> schemas.LegacyNotification:
    """Cancel those deliveries of a notification that have not started yet.

    If any delivery has already started or finished, the response is a 409 that lists all deliveries. Those that had not
    started are cancelled anyway.

    A key with the scope `send` but without `admin` can cancel only what was posted with this very key. All other
    notifications are a 404, as if they did not exist.
    """

    async def read() -> Notification:
        stored = found(
            await queries.get(principal.tenant, id_, posted_with=posted_with(principal)),
            f"There is no notification {id_}.",
        )
        if not schemas.has_integer_user(stored):
            raise CancellationRejected([], schemas.NO_INTEGER)
        return notification_visible_to(principal, stored)

    await read()
    await canceller.cancel(principal.tenant, id_)
    notification = await read()
    if not notification.is_cancelled:
        raise CancellationRejected([each.model_dump(mode="json") for each in schemas.summary(notification).deliveries])
    return schemas.view(notification)


def _summary(principal: Principal, notification: Notification) -> schemas.LegacyNotificationSummary:
    return schemas.summary(notification_visible_to(principal, notification))
