"""The console's page, and the overview that it shows."""

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
from support.fakes import FakeProvider
from support.servers import Servers
from support.services import eventually, running_gateway, running_sender, running_status_writer


async def refuses(_: DeliveryRequested) -> str:
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
    looked_at = asyncio.Event()

    async def waits(_: DeliveryRequested) -> str:
        await looked_at.wait()
        return "in the end"

    async with (
        running_sender(rabbit, FakeProvider()),
        running_sender(rabbit, FakeProvider(refuses), channel=Channel.EMAIL),
        running_sender(rabbit, FakeProvider(waits), channel=Channel.WEBHOOK, concurrency=2, provider_timeout=60),
        running_status_writer(rabbit, postgres),
        running_gateway(rabbit, postgres, rabbitmq_management_url=url, rabbitmq_ui_url=url) as api,
    ):

        async def counting() -> bool:
            look = (await api.get("/api/overview")).json()
            assert look["live"]
            return look["channels"][0]["seconds"]["sent"][-1] is not None

        await eventually(counting, "a whole second is counted")
        body = {"user_id": 1, "message": "x", "channels": ["telegram", "email", "webhook"]}
        posted = [(await api.post("/api/notifications", json=body)).json()["id"] for _ in range(5)]

        async def told() -> bool:
            look = (await api.get("/api/overview")).json()
            telegram, email, webhook = (
                next(each for each in look["channels"] if each["channel"] == channel)
                for channel in ("telegram", "email", "webhook")
            )
            return (
                [sum(each["seconds"]["accepted"]) for each in (telegram, email, webhook)] == [5, 5, 5]
                and sum(filter(None, telegram["seconds"]["sent"])) == 5
                and sum(filter(None, email["seconds"]["failed"])) == 5
                and (webhook["waiting"], webhook["in_flight"], webhook["consumers"]) == (3, 2, 1)
                and (telegram["waiting"], telegram["in_flight"], telegram["retrying"]) == (0, 0, 0)
            )

        await eventually(told, "all of it is counted")
        look = (await api.get("/api/overview")).json()
        (failed,) = look["failures"]
        assert (failed["channel"], failed["error_class"], failed["error_code"]) == ("email", "permanent", "blocked")
        assert (failed["count"], failed["last_notification_id"]) == (5, posted[-1])
        telegram = next(each for each in look["channels"] if each["channel"] == "telegram")
        assert 0 < telegram["latency_p50"] <= telegram["latency_p95"] < 60
        assert telegram["seconds"]["sent"][0] is None  # nobody has looked then
        assert (look["rabbitmq_connected"], look["outbox_rows"], look["dead_letters"]) == (True, 0, 0)
        heard_by = [name for name in await queues(servers, rabbit) if ".events." in name]
        assert len(heard_by) == 1

        async def forgotten() -> bool:
            return not any(".events." in name for name in await queues(servers, rabbit))

        await eventually(forgotten, "nothing is heard any more once nobody looks")
        looked_at.set()


async def test_overview_works_without_rabbitmq(api: httpx.AsyncClient) -> None:
    assert (await api.post("/api/notifications", json={"user_id": 1, "message": "x", "type": "email"})).is_success
    look = (await api.get("/api/overview")).json()
    assert (look["live"], look["rabbitmq_connected"], look["outbox_rows"]) == (False, False, 1)
    assert {each["waiting"] for each in look["channels"]} == {None}
    assert (await api.get("/api/links")).json() == {"rabbitmq": None, "trace": None}


async def test_console_page_needs_no_key_and_loads_nothing_from_other_hosts(secured_api: httpx.AsyncClient) -> None:
    answer = await secured_api.get("/")
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    for path in re.findall(r'(?:src|href)="(console/[^"]+)"', answer.text):
        assert (await secured_api.get(f"/{path}")).status_code == 200
