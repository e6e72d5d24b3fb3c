"""`GET /v1/events`."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse

from notify_gateway.events.history import EventFilter, EventHistory
from notify_gateway.events.hub import EventHub
from notify_gateway.events.schemas import EventId, EventQuery, IntegerEventQuery
from notify_gateway.events.server_sent import MEDIA_TYPE, position
from notify_gateway.events.stream import EventStream
from notify_gateway.http.authentication import AuthenticatedRoute, Authenticator, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.principal import Principal
from notify_gateway.http.problems import COMMON_PROBLEMS, documented

router = APIRouter(prefix="/v1/events", tags=["events"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)


STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}}

OpenStream = Callable[[Principal, EventQuery], EventStream]


async def stream_opener(
    request: Request,
    hub: Annotated[EventHub, Depends(provided(EventHub))],
    history: Annotated[EventHistory, Depends(provided(EventHistory))],
    authenticator: Annotated[Authenticator, Depends(provided(Authenticator))],
    last_event_id: Annotated[EventId | None, Header(description="The id of the last event the client read.")] = None,
) -> OpenStream:
    """Return a function that opens the stream of the events for which a principal has asked."""

    def open_stream(principal: Principal, query: EventQuery) -> EventStream:
        last = last_event_id or query.last_event_id
        event_filter = EventFilter(
            principal.tenant,
            None if query.user_id is None else str(query.user_id),
            query.notification_id,
            query.channel,
            integer_users=isinstance(query, IntegerEventQuery),
        )
        is_still_authorized = partial(authenticator.is_still, principal, request.headers.get("Authorization"))
        return EventStream(hub, history, event_filter, None if last is None else position(last), is_still_authorized)

    return open_stream


@router.get("", response_class=StreamingResponse, responses={**STREAM, **documented(422)})
async def stream_events(
    query: Annotated[EventQuery, Query()],
    principal: CanRead,
    open_stream: Annotated[OpenStream, Depends(stream_opener)],
) -> EventStream:
    """Stream status changes as server-sent events.

    The data of a `status` event is a `StatusEvent`. `live` says whether changes arrive as they happen; while RabbitMQ
    is unavailable, they arrive later. `reset` means that too many changes were missed for a replay: reload the list. If
    a client sends the id of the last event it read, it first receives the changes it missed; recent ones may be
    repeated.
    """
    return open_stream(principal, query)
