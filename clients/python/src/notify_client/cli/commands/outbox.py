"""`notify outbox`: run a relay, and care for the notifications that it holds."""

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, TypeVar
from uuid import UUID

import typer
from pydantic_core import to_jsonable_python
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from notify_client.cli.options import AsJson
from notify_client.client import AsyncClient
from notify_client.errors import ConfigurationError
from notify_client.outbox import create_table, drop, list_held, relay, release
from notify_client.outbox.database import DatabaseFailed, transaction
from notify_client.outbox.relay import BATCH_SIZE, POLL_INTERVAL

Result = TypeVar("Result")

app = typer.Typer(no_args_is_help=True, help="Send what was committed to the caller's outbox, and care for held rows.")

Database = Annotated[
    str,
    typer.Option(
        envvar="NOTIFY_OUTBOX_URL",
        help="The database with the table notify_outbox, as SQLAlchemy writes it. Prefer the variable for passwords.",
    ),
]
Ids = Annotated[list[UUID] | None, typer.Argument(help="The ids that `list` shows.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All held notifications.")]


@app.command()
def run(
    database: Database,
    url: Annotated[str | None, typer.Option(envvar="NOTIFY_URL", help="The gateway.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1000, help="Requests at a time.")] = BATCH_SIZE,
    poll_interval: Annotated[float, typer.Option(min=0.01, help="Seconds between looks at the table.")] = POLL_INTERVAL,
) -> None:
    """Send what is in the outbox until SIGTERM or SIGINT. Any number of relays may run at once.

    NOTIFY_API_KEY is the API key, which needs the scope `send`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    try:
        client = AsyncClient(url)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None
    asyncio.run(_relay(_engine(database), client, batch_size, poll_interval))


async def _relay(engine: Engine | AsyncEngine, client: AsyncClient, batch_size: int, poll_interval: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_dispose, engine)
        await stack.enter_async_context(client)
        await relay(engine, client, batch_size=batch_size, poll_interval=poll_interval).run(stop)


@app.command("list")
def list_(database: Database, as_json: AsJson = False, limit: Annotated[int, typer.Option(min=1)] = 1000) -> None:
    """List the notifications that are held: refused by the gateway, or too old to be repeated safely."""
    held = _call(database, lambda connection: list_held(connection, limit))
    if as_json:
        typer.echo(json.dumps([to_jsonable_python(asdict(each)) for each in held]))
        return
    for each in held:
        sent = "may have been sent" if each.maybe_sent else "not sent"
        reference = f" reference {each.reference}" if each.reference is not None else ""
        typer.echo(f"{each.id}  {each.created_at:%Y-%m-%d %H:%M:%S} UTC{reference}, {sent}\n    {each.error}")
    if not held:
        typer.echo("No notifications are held.")


@app.command("release")
def release_(database: Database, ids: Ids = None, every: All = False, as_json: AsJson = False) -> None:
    """Send held notifications again. One that may have been sent may then be sent twice."""
    _change(database, release, "released", ids, every=every, as_json=as_json)


@app.command("drop")
def drop_(database: Database, ids: Ids = None, every: All = False, as_json: AsJson = False) -> None:
    """Delete held notifications, which are then never sent."""
    _change(database, drop, "dropped", ids, every=every, as_json=as_json)


@app.command("create-table")
def create_table_(database: Database) -> None:
    """Create the table notify_outbox unless it exists. Prefer your own migrations."""
    _call(database, create_table)


def _change(
    database: str,
    change: Callable[[Connection, Sequence[UUID]], int],
    done: str,
    ids: Sequence[UUID] | None,
    *,
    every: bool,
    as_json: bool,
) -> None:
    if bool(ids) == every:
        raise typer.BadParameter("Name either ids or --all.")

    def in_transaction(connection: Connection) -> int:
        return change(connection, ids or [each.id for each in list_held(connection, limit=100_000)])

    changed = _call(database, in_transaction)
    typer.echo(json.dumps({done: changed}) if as_json else f"{changed} {done}.")
    if ids and changed < len(set(ids)):
        typer.echo("The others are not held.", err=True)
        raise typer.Exit(1)


def _engine(database: str) -> Engine | AsyncEngine:
    try:
        url = make_url(database)
        return create_async_engine(url) if url.get_dialect().is_async else create_engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise typer.BadParameter(f"The database cannot be used: {error}") from None


def _call(database: str, function: Callable[[Connection], Result]) -> Result:
    async def main() -> Result:
        engine = _engine(database)
        try:
            return await transaction(engine, function)
        finally:
            await _dispose(engine)

    try:
        return asyncio.run(main())
    except DatabaseFailed as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


async def _dispose(engine: Engine | AsyncEngine) -> None:
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()
