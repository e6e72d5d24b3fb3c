"""`GET /api/events`."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse

from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.events.schemas import EventId, IntegerEventQuery
from notify_gateway.events.server_sent import MEDIA_TYPE, position
from notify_gateway.events.stream import EventStream
from notify_gateway.http.authentication import AuthenticatedRoute, Authenticator, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.problems import LEGACY_PROBLEMS, Problem, documented

router = APIRouter(
    prefix="/api/events", tags=["events"], responses=LEGACY_PROBLEMS, route_class=AuthenticatedRoute, deprecated=True
)


@router.get(
    "",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}, **documented(422, model=Problem)},
)
async def events(
    query: Annotated[IntegerEventQuery, Query()],
    principal: CanRead,
    request: Request,
    hub: Annotated[EventHub, Depends(provided(EventHub))],
    history: Annotated[EventHistory, Depends(provided(EventHistory))],
    authenticator: Annotated[Authenticator, Depends(provided(Authenticator))],
    last_event_id: Annotated[EventId | None, Header(description="The id of the last event the client read.")] = None,
) -> EventStream:
    """Stream status changes as server-sent events.

    A `status` event carries a `StatusEvent`. `live` says whether changes arrive as they happen; while RabbitMQ is
    unavailable, they arrive later. `reset` means that too many changes were missed for a replay: reload the list. If a
    client sends the id of the last event it read, it first receives the changes it missed; recent ones may be repeated.
    """
    last = last_event_id or query.last_event_id
    event_filter = EventFilter(
        principal.tenant,
        None if query.user_id is None else str(query.user_id),
        query.notification_id,
        query.channel,
        integer_users=True,
    )
    is_still_authorized = partial(authenticator.is_still, principal, request.headers.get("Authorization"))
    return EventStream(hub, history, event_filter, None if last is None else position(last), is_still_authorized)
