"""The routes of the API."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, HTTPException, Path, Query, Request, Response
from notify_common.messages import DeliveryStatus

from notify_gateway.gateway import Gateway
from notify_gateway.intake import AcceptedNotification
from notify_gateway.notification_status import NotificationStatus
from notify_gateway.problems import documented
from notify_gateway.schemas import (
    EXAMPLE_REQUESTS,
    DeliveryView,
    ListQuery,
    NotificationPage,
    NotificationRequest,
    NotificationSummary,
    NotificationView,
    UserId,
    UserListQuery,
)

router = APIRouter(prefix="/api/notifications", tags=["notifications"])


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


@router.post("/", status_code=201, include_in_schema=False)
@router.post("", status_code=201, responses=documented(400, 422, 503))
async def create_notification(
    body: Annotated[NotificationRequest, Body(openapi_examples=EXAMPLE_REQUESTS)], request: Request
) -> NotificationView:
    """Accept a notification. 201 means that it is stored durably; it is sent from then on, whatever fails."""
    return _as_accepted(await _gateway(request).intake.accept(body))


@router.get("/", include_in_schema=False)
@router.get("", responses=documented(422, 503))
async def list_notifications(query: Annotated[ListQuery, Query()], request: Request) -> NotificationPage:
    """Notifications of a user or of a time window, newest first, in pages."""
    return await _gateway(request).queries.page(query)


@router.get("/{id}/", include_in_schema=False)
@router.get("/{id}", responses=documented(404, 422, 503))
async def get_notification(
    id_: Annotated[UUID | UserId, Path(alias="id", description="Of a notification (UUID), or of a user (integer).")],
    query: Annotated[UserListQuery, Query()],
    request: Request,
) -> NotificationView | list[NotificationSummary]:
    """One notification with the status of each delivery and every attempt.

    With a user's id (the URL of the first API): the user's notifications as a plain list, newest first, at most 1,000.
    """
    queries = _gateway(request).queries
    if isinstance(id_, int):
        return await queries.of_user(id_, query.status)
    if query.status is not None:
        raise HTTPException(422, "status: goes with the id of a user, not with that of a notification")
    notification = await queries.get(id_)
    if notification is None:
        raise HTTPException(404, f"There is no notification {id_}.")
    return notification


health_router = APIRouter(tags=["health"])


@health_router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@health_router.get("/readyz", responses={503: {"description": "PostgreSQL can not be used."}})
async def readyz(request: Request, response: Response) -> dict[str, str]:
    """Whether notifications are accepted. They are with RabbitMQ away: they wait in the outbox then."""
    gateway = _gateway(request)
    postgresql = await gateway.database_problem()
    if postgresql is not None:
        response.status_code = 503
    return {
        "status": "ready" if postgresql is None else "not ready",
        "postgresql": postgresql or "ready",
        "rabbitmq": "ready" if gateway.relay.connected else "not reachable: accepted notifications wait in the outbox",
    }


def _as_accepted(notification: AcceptedNotification) -> NotificationView:
    """The view of a notification that was committed just now, without reading it back."""
    request = notification.request
    return NotificationView.model_construct(
        id=notification.id,
        user_id=request.user_id,
        message=request.message,
        type=notification.deliveries[0].channel if len(notification.deliveries) == 1 else None,
        channels=request.requested_channels(),
        status=NotificationStatus.PENDING,
        subject=request.subject,
        metadata=request.metadata,
        created_at=notification.created_at,
        deliveries=[
            DeliveryView.model_construct(
                id=delivery.delivery_id,
                channel=delivery.channel,
                recipient=delivery.recipient,
                status=DeliveryStatus.PENDING,
                updated_at=notification.created_at,
                attempts=[],
            )
            for delivery in notification.deliveries
        ],
    )
