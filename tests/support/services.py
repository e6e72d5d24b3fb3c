"""Run the services in the test's own process, against real servers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, closing
from datetime import timedelta
from typing import Any, cast

import httpx
import uvicorn
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import Content, DeliveryRequested, StatusChange
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.worker import Worker
from notify_common.runtime.clock import utc_now
from notify_common.runtime.process import KEEP_ALIVE
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.service import SenderSettings, create_sender
from notify_common.sending.simulator import Simulator, WithSimulation
from notify_database.engine import PostgresSettings
from notify_gateway.application import Gateway
from notify_gateway.http.server import LimitedHttpProtocol
from notify_gateway.http_api import create_app
from notify_gateway.metrics import GatewayMetrics
from notify_gateway.settings import GatewaySettings
from notify_status_writer.application import create_status_writer
from notify_status_writer.settings import StatusWriterSettings
from prometheus_client import CollectorRegistry

from support.roles import as_service

NOWHERE = RabbitSettings.model_validate({"rabbitmq_host": "127.0.0.1", "rabbitmq_port": 1})
FIRST_DELAY = timedelta(milliseconds=50)
TIMEOUT = 20.0  # seconds; reached only if the test fails


def delivery_requested(**change: object) -> DeliveryRequested:
    now = utc_now()
    return DeliveryRequested.model_validate(
        {
            "delivery_id": new_id(now),
            "notification_id": new_id(now),
            "user_id": 1,
            "channel": Channel.TELEGRAM,
            "content": Content(message="hello"),
            **change,
        }
    )


def impossible_change() -> StatusChange:
    """Return a change that cannot be published, as only a bug could make it."""
    return cast("StatusChange", object())


def gateway_metrics() -> GatewayMetrics:
    """Return gateway metrics in a new registry, which nothing scrapes."""
    return GatewayMetrics(CollectorRegistry())


@asynccontextmanager
async def running_sender(
    rabbit: RabbitSettings,
    provider: Provider,
    *,
    channel: Channel = Channel.TELEGRAM,
    max_attempts: int = 3,
    provider_timeout: float = 5.0,
    concurrency: int = 100,
    first_delay: timedelta = FIRST_DELAY,
    limits: ProviderLimits | None = None,
    tracing: Tracing = UNTRACED,
    publisher_class: type[ConfirmedPublisher] = ConfirmedPublisher,
    simulator: Provider | None = None,
) -> AsyncIterator[Worker]:
    """Run a sender for one channel. Without a `simulator`, test deliveries are simulated without errors."""
    settings = SenderSettings.model_validate(
        {
            **rabbit.model_dump(exclude_unset=True),
            "health_port": 8081,  # not served here
            "max_retries": max_attempts,
            "retry_delay": first_delay.total_seconds(),
            "concurrency": concurrency,
            "provider_timeout": provider_timeout,
        }
    )
    sender = create_sender(
        settings,
        channel=channel,
        provider=WithSimulation(provider, simulator or Simulator(latency=0, error_probability=0)),
        limits=limits,
        tracing=tracing,
        publisher_class=publisher_class,
    )
    async with sender.running():
        yield sender


@asynccontextmanager
async def running_status_writer(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    *,
    events_to: RabbitSettings | None = None,
    tracing: Tracing = UNTRACED,
) -> AsyncIterator[Worker]:
    """Run a status writer with its own PostgreSQL user."""
    postgres = as_service(postgres, "status_writer")
    settings = StatusWriterSettings.model_validate(
        {**postgres.model_dump(exclude_unset=True), **rabbit.model_dump(exclude_unset=True)}
    )
    events = None if events_to is None else EventPublisher(events_to, "status_writer")
    status_writer = create_status_writer(settings, events=events, tracing=tracing)
    async with status_writer.running():
        yield status_writer


@asynccontextmanager
async def working_gateway(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    *,
    relaying: bool = True,
    tracing: Tracing = UNTRACED,
    **settings: object,
) -> AsyncIterator[Gateway]:
    """Run a gateway with its own PostgreSQL user, and without an HTTP server.

    If `relaying` is false, it accepts notifications but publishes none.
    """
    servers = {
        **as_service(postgres, "gateway").model_dump(exclude_unset=True),
        **rabbit.model_dump(exclude_unset=True),
    }
    gateway_settings = GatewaySettings.model_validate({**servers, "auth": "off", **settings})
    stop = asyncio.Event()
    async with aclosing(Gateway(gateway_settings, tracing)) as gateway:
        working = asyncio.create_task(gateway.work(stop)) if relaying else None
        try:
            yield gateway
        finally:
            stop.set()
            await (gateway.work(stop) if working is None else working)


@asynccontextmanager
async def running_gateway(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    *,
    relaying: bool = True,
    tracing: Tracing = UNTRACED,
    **settings: object,
) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway; yield a client that calls its ASGI application directly."""
    async with working_gateway(rabbit, postgres, relaying=relaying, tracing=tracing, **settings) as gateway:
        transport = httpx.ASGITransport(app=create_app(gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@asynccontextmanager
async def served_gateway(
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    *,
    relaying: bool = True,
    settings: Mapping[str, object] | None = None,
) -> AsyncIterator[httpx.URL]:
    """Run a gateway with a real HTTP server; yield its URL."""
    gateway_settings: dict[str, Any] = dict(settings or {})
    async with working_gateway(rabbit, postgres, relaying=relaying, **gateway_settings) as gateway:
        with closing(socket.socket()) as listener:
            # A small buffer fills quickly, so the gateway soon notices a client that does not read.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = uvicorn.Server(
                uvicorn.Config(
                    create_app(gateway),
                    http=LimitedHttpProtocol,
                    lifespan="off",
                    log_config=None,
                    proxy_headers=False,
                    timeout_keep_alive=KEEP_ALIVE,
                )
            )
            serving = asyncio.create_task(server.serve([listener]))
            try:
                yield httpx.URL(scheme="http", host="127.0.0.1", port=listener.getsockname()[1])
            finally:
                gateway.event_hub.close()
                server.should_exit = True
                await serving


async def eventually(condition: Callable[[], Awaitable[bool]], description: str, timeout: float = TIMEOUT) -> None:
    """Poll `condition` until it is true; fail after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            while not await condition():  # noqa: ASYNC110 - no event signals a changed row or queue
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not true within {timeout:g} s: {description}") from None
