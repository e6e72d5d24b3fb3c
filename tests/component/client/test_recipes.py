"""The examples in docs/recipes.md and docs/tutorial.md that need neither Django nor Celery run as they are."""

import asyncio
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from support.examples import python_examples, run
from support.fakes import FakeProvider
from support.servers import PROJECT
from support.services import NOWHERE, running_sender, running_status_writer, served_gateway

FASTAPI, _DJANGO_CLIENT, _DJANGO_VIEW, _CELERY, WITHOUT_CELERY = python_examples("docs/recipes.md")
TUTORIAL = (PROJECT / "docs/tutorial.md").read_text()
[FIRST_STEPS] = re.findall(r"<<'END'\n(.*?)^END$", TUTORIAL, re.MULTILINE | re.DOTALL)


async def test_fastapi_example_sends_a_link_or_asks_to_try_again(
    postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "shop"}
    exec(FASTAPI, names)  # noqa: S102 - our documentation
    app: FastAPI = names["app"]

    async def ask(url: str) -> Response:
        monkeypatch.setenv("NOTIFY_URL", url)
        shop = AsyncClient(transport=ASGITransport(app), base_url="http://shop")
        async with app.router.lifespan_context(app), shop:
            return await shop.post("/users/123/login-link")

    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        sent = await ask(str(url))
    unavailable = await ask(str(url))
    assert (sent.status_code, unavailable.status_code) == (202, 503)
    assert str(UUID(sent.json()["notification"])) == sent.json()["notification"]


async def test_request_that_replaces_a_celery_task_is_scheduled_and_cancelled(
    postgres: PostgresSettings, tmp_path: Path
) -> None:
    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        assert await asyncio.to_thread(run, WITHOUT_CELERY, str(url), tmp_path) == "pending\ncancelled\n"


async def test_first_steps_of_the_tutorial_send_and_wait(
    rabbit: RabbitSettings, postgres: PostgresSettings, tmp_path: Path
) -> None:
    async with (
        running_sender(rabbit, FakeProvider(), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        printed = await asyncio.to_thread(run, FIRST_STEPS, str(url), tmp_path)
    assert re.fullmatch(r"([0-9a-f-]{36}) pending\n\1 sent\n", printed), printed
