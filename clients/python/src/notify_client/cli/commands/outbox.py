"""`notify outbox`: run a relay, and care for the notifications that it holds."""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar
from uuid import UUID

import typer
from pydantic import TypeAdapter
from rich.text import Text
from sqlalchemy import Connection, Engine, create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from notify_client.cli.connection import connect_async
from notify_client.cli.exit_codes import CommandFailed, ExitCode
from notify_client.cli.options import AsJson, Limit, ProfileName
from notify_client.cli.output import console, note, one_line, print_json
from notify_client.cli.views import local, words
from notify_client.outbox import HeldNotification, create_table, drop, list_held, relay, release, table
from notify_client.outbox.database import DatabaseFailed, transaction
from notify_client.outbox.relay import BATCH_SIZE, POLL_INTERVAL

Result = TypeVar("Result")

app = typer.Typer()

PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""The packages of drivers whose modules have other names."""
HELD = TypeAdapter(list[HeldNotification])

Database = Annotated[
    str,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="NOTIFY_OUTBOX_URL",
        help="The database with the table notify_outbox, as SQLAlchemy writes it. Prefer the variable for passwords.",
    ),
]
Ids = Annotated[list[UUID] | None, typer.Argument(metavar="[ID]...", help="Held notifications; list prints the ids.")]
All = Annotated[bool, typer.Option("--all", help="All held notifications.")]


@app.command()
def run(
    database: Database,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="NUMBER", min=1, max=1000, help="Requests at a time.")
    ] = BATCH_SIZE,
    poll_interval: Annotated[
        float, typer.Option("--poll-interval", metavar="SECONDS", min=0.01, help="Time between looks at the table.")
    ] = POLL_INTERVAL,
    profile: ProfileName = None,
) -> None:
    """Send what is in the outbox until SIGTERM or Ctrl-C. Any number of relays may run at once.

    Example: notify outbox run --profile production

    The API key needs the scope send.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    asyncio.run(_relay(_engine(database), profile, batch_size, poll_interval))


async def _relay(engine: Engine | AsyncEngine, profile_name: str | None, batch_size: int, poll_interval: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with connect_async(profile_name) as client:
            await relay(engine, client, batch_size=batch_size, poll_interval=poll_interval).run(stop)
    finally:
        await _dispose(engine)


@app.command("list")
def list_(database: Database, limit: Limit = 1000, as_json: AsJson = False) -> None:
    """List the notifications that are held: refused by the gateway, or too old to be repeated safely.

    Example: notify outbox list
    """
    held = _call_on_table(database, lambda connection: list_held(connection, limit))
    if as_json:
        print_json(HELD.dump_python(held, mode="json"))
        return
    for each in held:
        reference = f"reference {each.reference}" if each.reference is not None else None
        sent = "may have been sent" if each.maybe_sent else "not sent"
        console().print(words(str(each.id), local(each.created_at), reference, sent))
        console().print(Text(f"    {one_line(each.error)}"))
    if not held:
        note("No notifications are held.")


@app.command("release")
def release_(database: Database, ids: Ids = None, every: All = False, as_json: AsJson = False) -> None:
    """Send held notifications again. One that may have been sent may then be sent twice.

    Example: notify outbox release 2f1c6c1e-6a0e-4a39-9a3c-1a2f8f0b9d5e
    """
    _change(database, release, "released", ids, every=every, as_json=as_json)


@app.command("drop")
def drop_(database: Database, ids: Ids = None, every: All = False, as_json: AsJson = False) -> None:
    """Delete held notifications, which are then never sent.

    Example: notify outbox drop 2f1c6c1e-6a0e-4a39-9a3c-1a2f8f0b9d5e
    """
    _change(database, drop, "dropped", ids, every=every, as_json=as_json)


@app.command("create-table")
def create_table_(database: Database, as_json: AsJson = False) -> None:
    """Create the table notify_outbox unless it exists. Prefer your own migrations.

    Example: notify outbox create-table
    """
    _call(database, create_table)
    if as_json:
        print_json({})
    else:
        note("The table notify_outbox exists.")


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
        raise typer.BadParameter("pass either ids or --all", param_hint="ID")

    def in_transaction(connection: Connection) -> int:
        return change(connection, ids or [each.id for each in list_held(connection, limit=100_000)])

    changed = _call_on_table(database, in_transaction)
    if as_json:
        print_json({done: changed})
    else:
        console().print(f"{changed} {done}.")
    if ids and changed < len(set(ids)):
        raise CommandFailed("the others are not held", ExitCode.NOT_FOUND)


def _engine(database: str) -> Engine | AsyncEngine:
    try:
        url = make_url(database)
        return create_async_engine(url) if url.get_dialect().is_async else create_engine(url)
    except NoSuchModuleError as error:
        raise typer.BadParameter(f"SQLAlchemy has no such driver: {error}", param_hint="--database") from None
    except ImportError as error:
        package = PACKAGES.get(error.name or "", error.name)
        remedy = f"pip install {package}" if package else error
        raise typer.BadParameter(f"its driver is missing: {remedy}", param_hint="--database") from None
    except (ArgumentError, ValueError):  # older releases repeat the URL, with its password
        raise typer.BadParameter("it is not a URL of SQLAlchemy", param_hint="--database") from None


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
        raise CommandFailed(f"the database: {error}", ExitCode.UNAVAILABLE) from None


def _call_on_table(database: str, function: Callable[[Connection], Result]) -> Result:
    if not _call(database, lambda connection: inspect(connection).has_table(table.name)):
        raise CommandFailed(
            f"the database has no table {table.name}: create it with your migrations, or notify outbox create-table",
            ExitCode.UNAVAILABLE,
        )
    return _call(database, function)


async def _dispose(engine: Engine | AsyncEngine) -> None:
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()
