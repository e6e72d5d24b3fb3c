"""The FastAPI example in docs/outbox.md runs as it is."""

import asyncio
import re
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from notify_database.engine import PostgresSettings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.servers import PROJECT
from support.services import NOWHERE, eventually, served_gateway

PAGE = (PROJECT / "docs/outbox.md").read_text()
[EXAMPLE] = re.findall(r"^### FastAPI\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


async def test_fastapi_example_sends_what_it_commits(
    postgres: PostgresSettings, another_postgres: PostgresSettings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = another_postgres.postgres_password.get_secret_value()
    server = f"{another_postgres.postgres_host}:{another_postgres.postgres_port}/{another_postgres.postgres_database}"
    monkeypatch.setenv("DATABASE_URL", f"postgresql+asyncpg://{another_postgres.postgres_user}:{password}@{server}")

    async def stored() -> list[tuple[str, Any]]:
        async with engine.connect() as connection:
            found = await connection.execute(
                text("SELECT reference, key FROM notifications CROSS JOIN idempotency_keys")
            )
            return [tuple(row) for row in found]

    async def is_stored() -> bool:
        return bool(await stored())

    async with served_gateway(NOWHERE, postgres, relaying=False) as url:
        monkeypatch.setenv("NOTIFY_URL", str(url))
        names: dict[str, Any] = {"__name__": "shop"}
        exec(EXAMPLE, names)  # noqa: S102 - our documentation
        app: FastAPI = names["app"]
        async with (
            app.router.lifespan_context(app),
            AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client,
        ):
            placed = await client.post("/orders/5512")
            placed.raise_for_status()
            refused = asyncio.create_task(client.post("/orders/5512"))
            with pytest.raises(Exception, match="duplicate key"):  # the order exists
                await refused
            await eventually(is_stored, "the notification is stored")
        await names["engine"].dispose()
    assert await stored() == [("order-5512", placed.json()["idempotency_key"])]
