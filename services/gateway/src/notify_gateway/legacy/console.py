"""`GET /api/overview` and `GET /api/links`."""

from typing import Annotated

from fastapi import APIRouter, Depends
from notify_common.contracts.messages import ErrorClass
from pydantic import BaseModel, Field

from notify_gateway.console import schemas as current
from notify_gateway.console.overview import Overview
from notify_gateway.console.routes import links_visible_to
from notify_gateway.http.authentication import AuthenticatedRoute, CanOperate, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.problems import LEGACY_PROBLEMS, Problem, documented

router = APIRouter(
    prefix="/api",
    tags=["overview"],
    responses={**LEGACY_PROBLEMS, **documented(504, model=Problem)},
    route_class=AuthenticatedRoute,
    deprecated=True,
)


class LegacySeconds(BaseModel):
    """The number of deliveries in each second; null for each second before counting began."""

    accepted: list[int]
    sent: list[int | None]
    retrying: list[int | None]
    failed: list[int | None]


class LegacyChannelOverview(current.ChannelOverview):
    """The rates, backlog and latency of a channel; the queue counts are null if RabbitMQ does not report them."""

    waiting: int | None = Field(description="Messages in the channel's queue.")
    in_flight: int | None = Field(description="Messages that senders have not yet acknowledged.")
    retrying: int | None = Field(description="Messages in the channel's retry queues.")
    consumers: int | None
    latency_p50: float | None
    latency_p95: float | None
    seconds: LegacySeconds  # type: ignore[assignment]  # the field is only read


class LegacyFailures(current.Failures):
    """A group of failed deliveries with the same channel and error, among the newest 10,000 deliveries."""

    error_class: ErrorClass | None
    error_code: str | None


class LegacyOverview(current.ServiceOverview):
    """The state of the whole service across all tenants."""

    results_waiting: int | None
    dead_letters: int | None
    channels: list[LegacyChannelOverview]  # type: ignore[assignment]  # the field is only read
    failures: list[LegacyFailures]  # type: ignore[assignment]  # the field is only read


class LegacyLinks(current.ConsoleLinks):
    """The URLs of other tools that the console links to; one that is not configured is null."""

    rabbitmq: str | None
    trace: str | None = Field(description="A URL in which `{trace_id}` stands for the trace id.")


@router.get("/overview")
async def get_overview(_: CanOperate, overview: Annotated[Overview, Depends(provided(Overview))]) -> LegacyOverview:
    """Return the rates for each second of the last two minutes, and the current backlogs."""
    state = await overview.read()
    return LegacyOverview.model_construct(
        **{
            **vars(state),
            "channels": [_channel(each) for each in state.channels],
            "failures": [LegacyFailures.model_construct(**vars(each)) for each in state.failures],
        }
    )


@router.get("/links")
async def get_links(
    principal: CanRead, links: Annotated[current.ConsoleLinks, Depends(provided(current.ConsoleLinks))]
) -> LegacyLinks:
    """Return the URLs of traces and, for keys with the scope `operator`, of RabbitMQ's management UI."""
    return LegacyLinks.model_construct(**vars(links_visible_to(principal, links)))


def _channel(channel: current.ChannelOverview) -> LegacyChannelOverview:
    seconds = vars(channel.seconds)
    length = len(channel.seconds.accepted)
    padded = {name: [None] * (length - len(counts)) + counts for name, counts in seconds.items()}
    return LegacyChannelOverview.model_construct(
        **{**vars(channel), "seconds": LegacySeconds.model_construct(**padded)}
    )
