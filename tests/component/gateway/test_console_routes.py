"""The console page and the operator overview."""

import asyncio
import re

import httpx
import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.sending.errors import PermanentFailure
from notify_database.engine import PostgresSettings
from notify_gateway.console import overview
from notify_gateway.http.principal import Scope
from sqlalchemy.ext.asyncio import AsyncEngine
from support.fakes import FakeProvider
from support.gateway import bearer
from support.servers import Servers
from support.services import NOWHERE, eventually, running_gateway, running_sender, running_status_writer


async def reject(_: DeliveryRequested) -> str:
    raise PermanentFailure("blocked")


async def queues(servers: Servers, rabbit: RabbitSettings) -> list[str]:
    with servers.management() as management:
        return [queue["name"] for queue in management.get(f"/api/queues/{rabbit.rabbitmq_vhost}").json()]


async def test_overview_counts_deliveries_by_channel(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "INTERVAL", 0.0)
    monkeypatch.setattr(overview, "IDLE_TIMEOUT", 3.0)
    with servers.management() as management:
        url = str(management.base_url)
    release = asyncio.Event()

    async def wait(_: DeliveryRequested) -> str:
        await release.wait()
        return "in the end"

    async with (
        running_sender(rabbit, FakeProvider()),
        running_sender(rabbit, FakeProvider(reject), channel=Channel.EMAIL),
        running_sender(rabbit, FakeProvider(wait), channel=Channel.WEBHOOK, concurrency=2, provider_timeout=60),
        running_status_writer(rabbit, postgres),
        running_gateway(rabbit, postgres, rabbitmq_management_url=url, rabbitmq_ui_url=url) as api,
    ):

        async def second_counted() -> bool:
            snapshot = (await api.get("/api/overview")).json()
            assert snapshot["live"]
            return snapshot["channels"][0]["seconds"]["sent"][-1] is not None

        await eventually(second_counted, "a full second has been counted")
        body = {"user_id": 1, "message": "x", "channels": ["telegram", "email", "webhook"]}
        posted = [(await api.post("/api/notifications", json=body)).json()["id"] for _ in range(5)]

        async def all_counted() -> bool:
            snapshot = (await api.get("/api/overview")).json()
            telegram, email, webhook = (
                next(each for each in snapshot["channels"] if each["channel"] == channel)
                for channel in ("telegram", "email", "webhook")
            )
            return (
                [sum(each["seconds"]["accepted"]) for each in (telegram, email, webhook)] == [5, 5, 5]
                and sum(filter(None, telegram["seconds"]["sent"])) == 5
                and sum(filter(None, email["seconds"]["failed"])) == 5
                and (webhook["waiting"], webhook["in_flight"], webhook["consumers"]) == (3, 2, 1)
                and (telegram["waiting"], telegram["in_flight"], telegram["retrying"]) == (0, 0, 0)
            )

        await eventually(all_counted, "all deliveries have been counted")
        snapshot = (await api.get("/api/overview")).json()
        (failed,) = snapshot["failures"]
        assert (failed["channel"], failed["error_class"], failed["error_code"]) == ("email", "permanent", "blocked")
        assert failed["count"] == 5
        assert failed["last_notification_id"] in posted  # they are sent at the same time, so any may fail last
        telegram = next(each for each in snapshot["channels"] if each["channel"] == "telegram")
        assert 0 < telegram["latency_p50"] <= telegram["latency_p95"] < 60
        assert telegram["seconds"]["sent"][0] is None  # counting had not begun by then
        assert (snapshot["rabbitmq_connected"], snapshot["outbox_rows"], snapshot["dead_letters"]) == (True, 0, 0)
        event_queues = [name for name in await queues(servers, rabbit) if ".events." in name]
        assert len(event_queues) == 1

        async def no_event_queue() -> bool:
            return not any(".events." in name for name in await queues(servers, rabbit))

        await eventually(no_event_queue, "the event queue is deleted when nobody requests the overview")
        release.set()


async def test_overview_works_without_rabbitmq(api: httpx.AsyncClient) -> None:
    assert (await api.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "email"})).is_success
    snapshot = (await api.get("/api/overview")).json()
    assert (snapshot["live"], snapshot["rabbitmq_connected"], snapshot["outbox_rows"]) == (False, False, 1)
    assert {each["waiting"] for each in snapshot["channels"]} == {None}
    assert (await api.get("/api/links")).json() == {"rabbitmq": None, "trace": None}


async def test_only_operators_learn_the_address_of_rabbitmqs_management_ui(
    postgres: PostgresSettings, engine: AsyncEngine
) -> None:
    ui, trace = "http://rabbitmq.example.org/", "http://traces.example.org/{trace_id}"
    async with running_gateway(
        NOWHERE, postgres, relaying=False, auth="on", rabbitmq_ui_url=ui, trace_url=trace
    ) as api:
        for scopes, expected in (((Scope.READ,), None), ((Scope.READ, Scope.OPERATOR), ui)):
            links = await api.get("/api/links", headers=await bearer(engine, *scopes))
            assert links.json() == {"rabbitmq": expected, "trace": trace}


async def test_console_page_needs_no_key_and_loads_nothing_from_other_hosts(secured_api: httpx.AsyncClient) -> None:
    response = await secured_api.get("/")
    assert response.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    for path in re.findall(r'(?:src|href)="(console/[^"]+)"', response.text):
        assert (await secured_api.get(f"/{path}")).status_code == 200
