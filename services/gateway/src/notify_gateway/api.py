"""The routes of the API."""

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from notify_common.channels import Channel
from notify_common.messages import DeliveryStatus
from typing_extensions import override

from notify_gateway.access import Administering, KeyedRoute, Operating, Reading, Sending, bearer
from notify_gateway.asyncapi import asyncapi_document
from notify_gateway.event_history import Wanted
from notify_gateway.event_stream import EventStream
from notify_gateway.gateway import Gateway
from notify_gateway.idempotency import IdempotencyKey
from notify_gateway.limits import AsgiScope, Receive, Send
from notify_gateway.problems import NotCancelled, documented
from notify_gateway.schemas import (
    EXAMPLE_REQUESTS,
    ConsoleLinks,
    DeliveryOfNotification,
    DeliverySummary,
    EventId,
    EventQuery,
    ListQuery,
    NotificationPage,
    NotificationRequest,
    NotificationSummary,
    NotificationView,
    OverviewView,
    RetryCount,
    RetryJobView,
    RetryRequest,
    UserChannelSettings,
    UserChannelView,
    UserId,
    UserListQuery,
    valid_recipient,
)
from notify_gateway.server_sent import MEDIA_TYPE, position

ALWAYS = documented(401, 403, 408, 413, 429, 431, 503)  # what any request can be answered
router = APIRouter(prefix="/api/notifications", tags=["notifications"], responses=ALWAYS, route_class=KeyedRoute)
deliveries_router = APIRouter(prefix="/api/deliveries", tags=["deliveries"], responses=ALWAYS, route_class=KeyedRoute)

users_router = APIRouter(prefix="/api/users", tags=["users"], responses=ALWAYS, route_class=KeyedRoute)

posting_router = APIRouter(prefix="/api/notifications", tags=["notifications"], responses=ALWAYS)


class DirectRoute(APIRoute):
    """A route that is described here and answered by `PostNotification`."""

    @override
    async def handle(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        await scope["app"].state.post_notification(scope, receive, send)


posting_router.route_class = DirectRoute


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


@posting_router.post("/", status_code=201, response_model=NotificationView, include_in_schema=False)
@posting_router.post("", status_code=201, response_model=NotificationView, responses=documented(400, 422))
async def create_notification(
    body: Annotated[NotificationRequest, Body(openapi_examples=EXAMPLE_REQUESTS)],
    _: Annotated[object, Depends(bearer)],
    idempotency_key: Annotated[
        IdempotencyKey | None,
        Header(description="A repeat with this key, within 24 hours, gets the answer that the first request got."),
    ] = None,
) -> None:
    """Accept a notification. 201 means that it is stored durably; it is sent from then on, whatever fails."""


@router.get("/", include_in_schema=False)
@router.get("", responses=documented(422))
async def list_notifications(
    query: Annotated[ListQuery, Query()], access: Reading, request: Request
) -> NotificationPage:
    """Notifications of a user or of a time window, newest first, in pages."""
    return await _gateway(request).queries.page(access.tenant, query)


@router.get("/{id}/", include_in_schema=False)
@router.get("/{id}", responses=documented(404, 422))
async def get_notification(
    id_: Annotated[UUID | UserId, Path(alias="id", description="Of a notification (UUID), or of a user (integer).")],
    query: Annotated[UserListQuery, Query()],
    access: Reading,
    request: Request,
) -> NotificationView | list[NotificationSummary]:
    """One notification with the status of each delivery and every attempt.

    With a user's id (the URL of the first API): the user's notifications as a plain list, newest first, at most 1,000.
    """
    if isinstance(id_, int):
        return await _gateway(request).queries.of_user(access.tenant, id_, query.status)
    if query.status is not None:
        raise HTTPException(422, "status: goes with the id of a user, not with that of a notification")
    return await _notification(request, access.tenant, id_)


@router.post("/{id}/cancel", responses=documented(404, 409, 422))
async def cancel_notification(
    id_: Annotated[UUID, Path(alias="id")], access: Administering, request: Request
) -> NotificationView:
    """Cancel every delivery that no process has taken yet.

    409 where there is any other: it is under way or final, and the answer lists all deliveries.
    """
    await _notification(request, access.tenant, id_)
    await _gateway(request).cancel(id_)
    notification = await _notification(request, access.tenant, id_)
    if any(delivery.status is not DeliveryStatus.CANCELLED for delivery in notification.deliveries):
        summaries = [DeliverySummary.model_validate(delivery.model_dump()) for delivery in notification.deliveries]
        raise NotCancelled(summaries)
    return notification


@deliveries_router.get("/{id:uuid}", responses=documented(404, 422))
async def get_delivery(
    id_: Annotated[UUID, Path(alias="id")], access: Reading, request: Request
) -> DeliveryOfNotification:
    """One delivery, and of which notification it is: logs and messages name it."""
    return await _delivery(request, access.tenant, id_)


@deliveries_router.post("/{id}/retry", status_code=202, responses=documented(404, 409, 422))
async def retry_delivery(
    id_: Annotated[UUID, Path(alias="id")], access: Administering, request: Request
) -> DeliveryOfNotification:
    """Put a failed delivery back, as a new round with a new budget; its history stays."""
    retried = await _gateway(request).retry(access.tenant, id_)
    delivery = await _delivery(request, access.tenant, id_)
    if not retried:
        raise HTTPException(409, f"Only a failed delivery can be retried; this one is {delivery.status}.")
    return delivery


@deliveries_router.post(
    "/retry",
    status_code=202,
    response_model=RetryJobView,
    responses={200: {"model": RetryCount, "description": "`dry_run`: how many match."}, **documented(400, 422)},
)
async def retry_deliveries(
    body: RetryRequest, access: Administering, request: Request, response: Response
) -> RetryJobView | Response:
    """Put back all failed deliveries that match, in the background; `dry_run` only counts them."""
    retries = _gateway(request).retries
    if not body.dry_run:
        return await retries.start(access.tenant, body)
    count = RetryCount(count=await retries.count(access.tenant, body))
    return Response(count.model_dump_json(), 200, dict(response.headers), "application/json")


@deliveries_router.get("/retry/{id}", responses=documented(404, 422))
async def get_retry_job(
    id_: Annotated[UUID, Path(alias="id")], access: Administering, request: Request
) -> RetryJobView:
    """How far a retry of many is."""
    job = await _gateway(request).retries.job(access.tenant, id_)
    if job is None:
        raise HTTPException(404, f"There is no retry {id_}.")
    return job


@users_router.get("/{user_id}/channels", responses=documented(422))
async def list_user_channels(
    user_id: Annotated[UserId, Path()], access: Reading, request: Request
) -> list[UserChannelView]:
    """Where a user is reached, and which channels the user does not want."""
    return await _gateway(request).user_channels.of_user(access.tenant, user_id)


@users_router.get("/{user_id}/channels/{channel}", responses=documented(404, 422))
async def get_user_channel(
    user_id: Annotated[UserId, Path()], channel: Channel, access: Reading, request: Request
) -> UserChannelView:
    """What is stored of one channel of a user."""
    stored = await _gateway(request).user_channels.of_user(access.tenant, user_id)
    for each in stored:
        if each.channel is channel:
            return each
    raise HTTPException(404, f"Nothing is stored of {channel} of user {user_id}.")


@users_router.put("/{user_id}/channels/{channel}", responses=documented(400, 422))
async def put_user_channel(
    user_id: Annotated[UserId, Path()],
    channel: Channel,
    body: UserChannelSettings,
    access: Sending,
    request: Request,
) -> UserChannelView:
    """Store where a user is reached over a channel, or that the user does not want it.

    The recipient goes with notifications that are posted from then on and name none. That a user has opted out holds
    for what is scheduled, too.
    """
    wanted = body
    if body.recipient is not None:
        wanted = body.model_copy(update={"recipient": valid_recipient(channel, body.recipient)})
    return await _gateway(request).user_channels.store(access.tenant, user_id, channel, wanted)


@users_router.delete("/{user_id}/channels/{channel}", status_code=204, responses=documented(404, 422))
async def delete_user_channel(
    user_id: Annotated[UserId, Path()], channel: Channel, access: Sending, request: Request
) -> None:
    """Forget what is stored of a channel of a user."""
    if not await _gateway(request).user_channels.forget(access.tenant, user_id, channel):
        raise HTTPException(404, f"Nothing is stored of {channel} of user {user_id}.")


async def _delivery(request: Request, tenant: str, delivery_id: UUID) -> DeliveryOfNotification:
    delivery = await _gateway(request).queries.delivery(tenant, delivery_id)
    if delivery is None:
        raise HTTPException(404, f"There is no delivery {delivery_id}.")
    return delivery


async def _notification(request: Request, tenant: str, notification_id: UUID) -> NotificationView:
    notification = await _gateway(request).queries.get(tenant, notification_id)
    if notification is None:
        raise HTTPException(404, f"There is no notification {notification_id}.")
    return notification


events_router = APIRouter(prefix="/api/events", tags=["events"], responses=ALWAYS, route_class=KeyedRoute)


@events_router.get(
    "",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}, **documented(422)},
)
async def events(
    query: Annotated[EventQuery, Query()],
    access: Reading,
    request: Request,
    last_event_id: Annotated[EventId | None, Header(description="Of the last event that was read.")] = None,
) -> EventStream:
    """Changes of status as they are written, as server-sent events.

    `status`: a `StatusEvent`. `live`: whether they come as they happen; with RabbitMQ away they come afterwards.
    `reset`: too much was missed to be told one by one. With the id of the last one that was read, what was missed comes
    first; the last of what was read may come again.
    """
    last = last_event_id or query.last_event_id
    wanted = Wanted(access.tenant, query.user_id, query.notification_id, query.channel)
    gateway = _gateway(request)
    admitted = partial(gateway.door.still_admits, request.headers.get("Authorization"), access)
    return gateway.listen(wanted, None if last is None else position(last), admitted)


console_router = APIRouter(prefix="/api", tags=["overview"], responses=ALWAYS, route_class=KeyedRoute)


@console_router.get("/overview")
async def overview(_: Operating, request: Request) -> OverviewView:
    """What goes in and out, second by second for two minutes, and where it waits."""
    return await _gateway(request).overview()


@console_router.get("/links")
async def links(_: Reading, request: Request) -> ConsoleLinks:
    """Where traces and RabbitMQ's management UI are, as far as that is set."""
    return _gateway(request).links


documents_router = APIRouter(tags=["documents"])


@documents_router.get("/asyncapi")
async def asyncapi() -> dict[str, Any]:
    """The messages between the services, as an AsyncAPI document."""
    return asyncapi_document()


metrics_router = APIRouter()


@metrics_router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    content, content_type = await _gateway(request).exposition(request.headers.get("Accept", ""))
    return Response(content, media_type=content_type)


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
