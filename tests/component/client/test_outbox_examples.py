"""The examples in docs/outbox.md run as they are, except for that with Django."""

import ast
import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from notify_client import AsyncClient as NotifyClient
from notify_client import Client, outbox
from notify_database.engine import PostgresSettings
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from support.examples import python_examples
from support.services import NOWHERE, eventually, served_gateway

ENQUEUE, RELAYS, FASTAPI, DJANGO = python_examples("docs/outbox.md")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def shop() -> Iterator[Engine]:
    """Yield the engine of a business database in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    outbox.create_table(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("example", [ENQUEUE, FASTAPI, DJANGO], ids=["enqueue", "fastapi", "django"])
def test_examples_name_the_recipient_that_a_real_email_needs(example: str) -> None:
    assert 'to={"email": "ada@example.org"}' in example


def test_first_example_commits_the_order_and_the_notification(shop: Engine) -> None:
    exec(ENQUEUE, {"Order": Order, "Session": Session, "engine": shop})  # noqa: S102 - our documentation
    with Session(shop) as session:
        assert session.scalars(select(Order.number)).all() == [5512]
        [body] = session.scalars(select(outbox.table.c.body))
    assert json.loads(body)["reference"] == "order-5512"


async def test_relays_run_in_an_event_loop_and_in_a_thread(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_URL", "http://127.0.0.1:1")
    names = {"AsyncClient": NotifyClient, "Client": Client, "outbox": outbox, "engine": shop}
    await eval(compile(RELAYS, "docs/outbox.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307 - ours


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
        exec(FASTAPI, names)  # noqa: S102 - our documentation
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
