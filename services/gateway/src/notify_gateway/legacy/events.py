"""`GET /api/events`."""

from inspect import getdoc
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from notify_gateway.events.routes import STREAM, OpenStream, stream_events, stream_opener
from notify_gateway.events.schemas import IntegerEventQuery
from notify_gateway.events.stream import EventStream
from notify_gateway.http.authentication import AuthenticatedRoute, CanRead
from notify_gateway.http.problems import LEGACY_PROBLEMS, Problem, documented

router = APIRouter(
    prefix="/api/events", tags=["events"], responses=LEGACY_PROBLEMS, route_class=AuthenticatedRoute, deprecated=True
)


@router.get(
    "",
    description=getdoc(stream_events),
    response_class=StreamingResponse,
    responses={**STREAM, **documented(422, model=Problem)},
)
async def events(
    query: Annotated[IntegerEventQuery, Query()],
    principal: CanRead,
    open_stream: Annotated[OpenStream, Depends(stream_opener)],
) -> EventStream:
    """Stream status changes of users whose ids are integers."""
    return open_stream(principal, query)
