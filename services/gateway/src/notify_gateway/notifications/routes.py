"""The routes below `/api/notifications`."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query
from notify_common.contracts.messages import DeliveryStatus

from notify_gateway.deliveries.schemas import DeliverySummary
from notify_gateway.errors import CancellationRejected
from notify_gateway.http.authentication import AuthenticatedRoute, CanAdminister, CanRead, bearer
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserId
from notify_gateway.http.problems import COMMON_PROBLEMS, documented
from notify_gateway.notifications.cancel import NotificationCanceller
from notify_gateway.notifications.idempotency import IdempotencyKey
from notify_gateway.notifications.queries import NotificationQueries
from notify_gateway.notifications.schemas import (
    EXAMPLE_REQUESTS,
    CancellationProblem,
    ListQuery,
    NotificationPage,
    NotificationRequest,
    NotificationSummary,
    NotificationView,
    UserListQuery,
)

PREFIX, TAGS = "/api/notifications", ["notifications"]
router = APIRouter(prefix=PREFIX, tags=[*TAGS], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)
endpoint_router = APIRouter(prefix=PREFIX, tags=[*TAGS], responses=COMMON_PROBLEMS)

Queries = Annotated[NotificationQueries, Depends(provided(NotificationQueries))]
Canceller = Annotated[NotificationCanceller, Depends(provided(NotificationCanceller))]
NotificationId = Annotated[UUID, Path(alias="id")]


@endpoint_router.post("/", status_code=201, response_model=NotificationView, include_in_schema=False)
@endpoint_router.post("", status_code=201, response_model=NotificationView, responses=documented(400, 422))
async def create_notification(
    body: Annotated[NotificationRequest, Body(openapi_examples=EXAMPLE_REQUESTS)],
    _: Annotated[object, Depends(bearer)],
    idempotency_key: Annotated[
        IdempotencyKey | None,
        Header(description="A repeat with this key, within 24 hours, gets the answer that the first request got."),
    ] = None,
) -> None:
    """Accept a notification. 201 means that it is stored durably; it is sent from then on, whatever fails."""
    # `endpoint.py` answers before FastAPI does; `application.py` connects the two.


@router.get("/", include_in_schema=False)
@router.get("", responses=documented(422))
async def list_notifications(
    query: Annotated[ListQuery, Query()], principal: CanRead, queries: Queries
) -> NotificationPage:
    """Notifications of a user or of a time window, newest first, in pages."""
    return await queries.page(principal.tenant, query)


@router.get("/{id}/", include_in_schema=False)
@router.get("/{id}", responses=documented(404, 422))
async def get_notification(
    id_: Annotated[UUID | UserId, Path(alias="id", description="Of a notification (UUID), or of a user (integer).")],
    query: Annotated[UserListQuery, Query()],
    principal: CanRead,
    queries: Queries,
) -> NotificationView | list[NotificationSummary]:
    """One notification with the status of each delivery and every attempt.

    With a user's id (the URL of the first API): the user's notifications as a plain list, newest first, at most 1,000.
    """
    if isinstance(id_, int):
        return await queries.of_user(principal.tenant, id_, query.status)
    if query.status is not None:
        raise HTTPException(422, "status: goes with the id of a user, not with that of a notification")
    return await _notification(queries, principal.tenant, id_)


@router.post("/{id}/cancel", responses={**documented(404, 422), **documented(409, model=CancellationProblem)})
async def cancel_notification(
    id_: NotificationId, principal: CanAdminister, queries: Queries, canceller: Canceller
) -> NotificationView:
    """Cancel every delivery that no process has taken yet.

    409 where there is any other: it is under way or final, and the answer lists all deliveries.
    """
    await _notification(queries, principal.tenant, id_)
    await canceller.cancel(id_)
    notification = await _notification(queries, principal.tenant, id_)
    if any(delivery.status is not DeliveryStatus.CANCELLED for delivery in notification.deliveries):
        summaries = [DeliverySummary.model_validate(delivery.model_dump()) for delivery in notification.deliveries]
        raise CancellationRejected(summaries)
    return notification


async def _notification(queries: NotificationQueries, tenant: str, notification_id: UUID) -> NotificationView:
    notification = await queries.get(tenant, notification_id)
    if notification is None:
        raise HTTPException(404, f"There is no notification {notification_id}.")
    return notification
