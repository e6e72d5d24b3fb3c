"""The routes under `/api/notifications`."""

from collections.abc import Sequence
from typing import Annotated, NoReturn, TypeVar
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Response
from notify_common.contracts.messages import DeliveryStatus

from notify_gateway.deliveries.schemas import DeliverySummary
from notify_gateway.deliveries.visibility import visible_to
from notify_gateway.errors import CancellationRejected
from notify_gateway.http.authentication import AuthenticatedRoute, CanCancel, CanRead, CanSend
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserId
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.http.problems import COMMON_PROBLEMS, documented, found
from notify_gateway.notifications import schemas
from notify_gateway.notifications.cancel import NotificationCanceller
from notify_gateway.notifications.idempotency import IdempotencyKey
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.slices import in_slices

PREFIX = "/api/notifications"
router = APIRouter(prefix=PREFIX, tags=["notifications"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)
# This router only documents the route: `http_api.py` passes the requests to `endpoint.py`, bypassing FastAPI.
# It requires a key all the same, in case a request ever reaches it.
bypassed_router = APIRouter(
    prefix=PREFIX, tags=["notifications"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute
)

Queries = Annotated[NotificationQueries, Depends(provided(NotificationQueries))]
Canceller = Annotated[NotificationCanceller, Depends(provided(NotificationCanceller))]
NotificationId = Annotated[UUID, Path(alias="id")]
NotificationOrList = schemas.NotificationView | list[schemas.NotificationSummary]
Notification = TypeVar("Notification", bound=schemas.NotificationSummary)


@bypassed_router.post("/", status_code=201, response_model=schemas.NotificationView, include_in_schema=False)
@bypassed_router.post("", status_code=201, response_model=schemas.NotificationView, responses=documented(400, 422))
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


@router.get("/", response_model=schemas.NotificationPage, include_in_schema=False)
@router.get("", response_model=schemas.NotificationPage, responses=documented(422, 504))
async def list_notifications(
    query: Annotated[schemas.ListQuery, Query()], principal: CanRead, queries: Queries, response: Response
) -> Response:
    """List notifications, newest first.

    Filter by user, status, channel or creation time. To get the next page, pass `next_cursor` as `cursor`. A page with
    large notifications ends after about 4 MB, before it has `limit` of them.
    """
    page = await queries.page(principal.tenant, query)
    items = await _json_array(principal, page.items)
    cursor = b"null" if page.next_cursor is None else b'"%b"' % str(page.next_cursor).encode()
    return _json_response(b'{"items":%b,"next_cursor":%b}' % (items, cursor), response)


@router.get("/{id}/", response_model=NotificationOrList, include_in_schema=False)
@router.get("/{id}", response_model=NotificationOrList, responses=documented(404, 422, 504))
async def get_notification(
    id_: Annotated[UUID | UserId, Path(alias="id", description="A notification id (UUID) or a user id (integer).")],
    query: Annotated[schemas.UserListQuery, Query()],
    principal: CanRead,
    queries: Queries,
    response: Response,
) -> schemas.NotificationView | Response:
    """Retrieve a notification with its deliveries and their attempts.

    If `id` is a user id, the response is instead a list of the user's latest notifications, newest first:
    at most 1,000, or as many as fit into about 4 MB.

    Clients of the first version of this API rely on this; new clients should list notifications by `user_id`.
    """
    if isinstance(id_, int):
        listed = await queries.list_of_user(principal.tenant, id_, query.status)
        return _json_response(await _json_array(principal, listed), response)
    if query.status is not None:
        raise HTTPException(422, "status: is supported only with a user id")
    notification = found(await queries.get(principal.tenant, id_), f"There is no notification {id_}.")
    return _notification_visible_to(principal, notification)


@router.post(
    "/{id}/cancel", responses={**documented(404, 422, 504), **documented(409, model=schemas.CancellationProblem)}
)
async def cancel_notification(
    id_: NotificationId, principal: CanCancel, queries: Queries, canceller: Canceller
) -> schemas.NotificationView:
    """Cancel those deliveries of a notification that have not started yet.

    If any delivery has already started or finished, the response is a 409 that lists all deliveries. Those that had not
    started are cancelled anyway.

    A key with the scope `send` but without `admin` can cancel only what was posted with this very key. All other
    notifications are a 404, as if they did not exist.
    """
    posted_with = None if Scope.ADMIN in principal.scopes else principal.api_key_id

    async def read() -> schemas.NotificationView:
        stored = await queries.get(principal.tenant, id_, posted_with=posted_with)
        return _notification_visible_to(principal, found(stored, f"There is no notification {id_}."))

    await read()
    await canceller.cancel(principal.tenant, id_)
    notification = await read()
    if any(delivery.status is not DeliveryStatus.CANCELLED for delivery in notification.deliveries):
        summaries = [DeliverySummary.model_construct(**vars(delivery)) for delivery in notification.deliveries]
        raise CancellationRejected(summaries)
    return notification


async def _json_array(principal: Principal, notifications: Sequence[schemas.NotificationSummary]) -> bytes:
    # FastAPI would render all of them in one step.
    rendered = [
        _notification_visible_to(principal, each).model_dump_json().encode() async for each in in_slices(notifications)
    ]
    return b"[%b]" % b",".join(rendered)


def _json_response(content: bytes, response: Response) -> Response:
    return Response(content, 200, dict(response.headers), "application/json")


def _notification_visible_to(principal: Principal, notification: Notification) -> Notification:
    if Scope.RECIPIENTS_READ in principal.scopes:
        return notification
    deliveries = [visible_to(principal, delivery) for delivery in notification.deliveries]
    return notification.model_copy(update={"deliveries": deliveries})
