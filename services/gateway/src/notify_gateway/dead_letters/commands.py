"""`notify-gateway dead …`: list, show, requeue and drop dead letters."""

import argparse
import sys

from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings, create_engine

from notify_gateway.dead_letters.archive import DeadLetter, DeadLetterArchive, open_archive
from notify_gateway.deliveries.retries import DeliveryRetries

DEFAULT_LIMIT = 100


class DeadLetterSettings(PostgresSettings, RabbitSettings):
    """Where the servers are. The RabbitMQ user must be able to read the archive and to write to every exchange."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `dead`."""
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="what died, and why")
    listing.add_argument("--limit", type=int, default=DEFAULT_LIMIT, help="(default: %(default)s)")
    actions.add_parser("show", help="one message with its headers and its body").add_argument("id")
    for action, help_text in (
        ("requeue", "give a failed delivery a new round; put back any other message where it died"),
        ("drop", "forget"),
    ):
        which = actions.add_parser(action, help=help_text).add_mutually_exclusive_group(required=True)
        which.add_argument("id", nargs="?", help="of one message")
        which.add_argument("--all", action="store_true", help="every message that is there now")


async def run(settings: DeadLetterSettings, options: argparse.Namespace) -> bool:
    """Run one action; return whether it succeeded."""
    engine = create_engine(settings, pool_size=1)
    try:
        async with open_archive(settings) as archive:
            if options.action == "list":
                await _list(archive, options.limit)
                return True
            return await _apply(archive, DeliveryRetries(engine), options)
    finally:
        await engine.dispose()


async def _list(archive: DeadLetterArchive, limit: int) -> None:
    shown = 0
    async for letter in archive.letters():
        if shown == limit:
            print("… and more: --limit shows them")
            break
        delivery = str(letter.message.headers.get("delivery_id", "-"))
        print(f"{letter.id}  {letter.origin or '-':<23} delivery {delivery}  {letter.reason}")
        shown += 1


async def _apply(archive: DeadLetterArchive, retries: DeliveryRetries, options: argparse.Namespace) -> bool:
    every = getattr(options, "all", False)
    count = 0
    async for letter in archive.letters():
        if not every and letter.id != options.id:
            continue
        if options.action == "requeue":
            count += await _requeue(archive, retries, letter)
        elif options.action == "drop":
            await archive.drop(letter)
            count += 1
        else:
            _show(letter)
            count += 1
        if not every:
            break
    if options.action != "show":
        print(f"{count} message(s)")
    if not count and options.id is not None:
        print(f"There is no message {options.id}, or it can not be put back.", file=sys.stderr)
    return bool(count) or options.id is None


async def _requeue(archive: DeadLetterArchive, retries: DeliveryRetries, letter: DeadLetter) -> bool:
    if letter.delivery_id is None:
        return await archive.requeue(letter)
    # A new round, as the API does it: if the old message were requeued beside it, both would be sent.
    if not await retries.retry(None, letter.delivery_id):
        print(f"{letter.id}: delivery {letter.delivery_id} is not failed, there is nothing to retry", file=sys.stderr)
        return False
    await archive.drop(letter)
    return True


def _show(letter: DeadLetter) -> None:
    for name, value in sorted(letter.message.headers.items()):
        print(f"{name}: {value!s}")
    print()
    print(letter.message.body.decode(errors="backslashreplace"))
