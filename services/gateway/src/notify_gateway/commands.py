"""`notify-gateway keys …` and `notify-gateway dead …`: what an operator does by hand."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from uuid import UUID

from notify_common.process import ServiceSettings, load_settings
from notify_common.rabbitmq import BROKER_ERRORS, RabbitSettings
from notify_database.engine import DatabaseAway, PostgresSettings, create_engine

from notify_gateway.api_keys import DEFAULT_TENANT, ApiKeys, Scope
from notify_gateway.dead_archive import DeadArchive, DeadLetter, dead_archive
from notify_gateway.delivery_retries import DeliveryRetries

SHOWN = 100


class OperatorSettings(ServiceSettings, PostgresSettings, RabbitSettings):
    """Where the servers are; `dead` needs a RabbitMQ user that may read the archive and write to every exchange."""


def run_command(arguments: Sequence[str]) -> None:
    """Run one command; the exit code is 1 where it could not do what it was told."""
    options = _parser().parse_args(arguments)
    settings = load_settings(OperatorSettings)
    try:
        done = asyncio.run(_keys(settings, options) if options.command == "keys" else _dead(settings, options))
    except DatabaseAway as away:
        sys.exit(f"PostgreSQL is not available: {away}")
    except BROKER_ERRORS as error:
        sys.exit(f"RabbitMQ: {error!r}")
    sys.exit(0 if done else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="notify-gateway", description="Without a command: run the gateway.")
    commands = parser.add_subparsers(dest="command", required=True)
    keys = commands.add_parser("keys", help="API keys").add_subparsers(dest="action", required=True)
    create = keys.add_parser("create", help="make a key; it is printed once and can not be read again")
    create.add_argument("--tenant", default=DEFAULT_TENANT, help="whose notifications it sees (default: %(default)s)")
    create.add_argument("--name", default="", help="what it is for")
    create.add_argument(
        "--scope", action="append", required=True, choices=[scope.value for scope in Scope], help="may be repeated"
    )
    keys.add_parser("list", help="all keys, without the keys themselves")
    revoke = keys.add_parser("revoke", help="end a key: within 5 s no gateway takes it any more")
    revoke.add_argument("id", type=UUID)
    dead = commands.add_parser("dead", help="the archive notifications.dead").add_subparsers(
        dest="action", required=True
    )
    listing = dead.add_parser("list", help="what died, and why")
    listing.add_argument("--limit", type=int, default=SHOWN, help="(default: %(default)s)")
    dead.add_parser("show", help="one message with its headers and its body").add_argument("id")
    for action, help_text in (
        ("requeue", "give a failed delivery a new round; put back any other message where it died"),
        ("drop", "forget"),
    ):
        which = dead.add_parser(action, help=help_text).add_mutually_exclusive_group(required=True)
        which.add_argument("id", nargs="?", help="of one message")
        which.add_argument("--all", action="store_true", help="every message that is there now")
    return parser


async def _keys(settings: OperatorSettings, options: argparse.Namespace) -> bool:
    engine = create_engine(settings, pool_size=1)
    keys = ApiKeys(engine)
    try:
        if options.action == "create":
            key_id, token = await keys.create(options.tenant, options.name, frozenset(map(Scope, options.scope)))
            print(f"{key_id}  {token}")
        elif options.action == "list":
            for key in await keys.list():
                state = f"revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "valid"
                created = f"{key.created_at:%Y-%m-%d %H:%M}"
                print(f"{key.id}  {key.tenant:<15} {','.join(key.scopes):<25} {created}  {state:<24} {key.name}")
        elif not await keys.revoke(options.id):
            print(f"{options.id} is no valid key", file=sys.stderr)
            return False
    finally:
        await engine.dispose()
    return True


async def _dead(settings: OperatorSettings, options: argparse.Namespace) -> bool:
    engine = create_engine(settings, pool_size=1)
    try:
        return await _dead_letters(settings, DeliveryRetries(engine), options)
    finally:
        await engine.dispose()


async def _dead_letters(settings: OperatorSettings, retries: DeliveryRetries, options: argparse.Namespace) -> bool:
    async with dead_archive(settings) as archive:
        if options.action == "list":
            return await _list_dead(archive, options.limit)
        done = 0
        async for letter in archive.letters():
            if getattr(options, "all", False) or letter.id == options.id:
                done += await _act(archive, retries, options.action, letter)
                if not getattr(options, "all", False):
                    break
    if options.action != "show":
        print(f"{done} message(s)")
    if not done and options.id is not None:
        print(f"There is no message {options.id}, or it can not be put back.", file=sys.stderr)
    return bool(done) or options.id is None


async def _list_dead(archive: DeadArchive, limit: int) -> bool:
    shown = 0
    async for letter in archive.letters():
        if shown == limit:
            print("… and more: --limit shows them")
            break
        delivery = str(letter.message.headers.get("delivery_id", "-"))
        print(f"{letter.id}  {letter.home or '-':<23} delivery {delivery}  {letter.reason}")
        shown += 1
    return True


async def _requeue(archive: DeadArchive, retries: DeliveryRetries, letter: DeadLetter) -> bool:
    if letter.delivery_id is None:
        return await archive.requeue(letter)
    # A new round, as by the API: were the old message put back beside it, both would be sent.
    if not await retries.retry(None, letter.delivery_id):
        print(f"{letter.id}: delivery {letter.delivery_id} is not failed, there is nothing to retry", file=sys.stderr)
        return False
    await archive.drop(letter)
    return True


async def _act(archive: DeadArchive, retries: DeliveryRetries, action: str, letter: DeadLetter) -> bool:
    if action == "requeue":
        return await _requeue(archive, retries, letter)
    if action == "drop":
        await archive.drop(letter)
    else:
        for name, value in sorted(letter.message.headers.items()):
            print(f"{name}: {value!s}")
        print()
        print(letter.message.body.decode(errors="backslashreplace"))
    return True
