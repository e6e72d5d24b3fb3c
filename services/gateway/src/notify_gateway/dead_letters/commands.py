"""`notify-gateway dead …`: list, show, requeue and drop dead letters."""

import argparse
import sys

from notify_common.contracts.messages import DELIVERY_ID_HEADER
from notify_common.errors import PublishImpossible
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.logging import escape_controls
from notify_database.engine import PostgresSettings, create_engine

from notify_gateway.dead_letters.archive import DeadLetter, DeadLetterArchive, open_archive
from notify_gateway.deliveries.retries import DeliveryRetries

DEFAULT_LIMIT = 100


class DeadLetterSettings(PostgresSettings, RabbitSettings):
    """Connection settings. The RabbitMQ user needs read access to the archives and write access to every exchange."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `notify-gateway dead`."""
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="list dead letters with their reasons")
    listing.add_argument("--limit", type=int, default=DEFAULT_LIMIT, help="maximum to list (default: %(default)s)")
    actions.add_parser("show", help="show the headers and body of a message").add_argument("id")
    for action, help_text in (
        ("requeue", "retry a failed delivery in a new round; return any other message to its original queue"),
        ("drop", "delete messages without retrying them"),
    ):
        which = actions.add_parser(action, help=help_text).add_mutually_exclusive_group(required=True)
        which.add_argument("id", nargs="?", help="the id of the message")
        which.add_argument("--all", action="store_true", help="apply to all messages in all archives")


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
            print("There are more messages; raise --limit to see them.")
            break
        delivery = str(letter.message.headers.get(DELIVERY_ID_HEADER, "-"))
        shown_line = f"{letter.id}  {letter.origin or '-':<23} delivery {delivery}  {letter.reason}"
        print(escape_controls(shown_line))
        shown += 1


async def _apply(archive: DeadLetterArchive, retries: DeliveryRetries, options: argparse.Namespace) -> bool:
    count = 0
    async for letter in archive.letters():
        if options.id not in {None, letter.id}:
            continue
        if options.action == "requeue":
            count += await _requeue(archive, retries, letter)
        else:
            if options.action == "drop":
                await letter.message.ack()
            else:
                _show(letter)
            count += 1
        if options.id is not None:
            break
    if options.action != "show":
        print(f"{count} message(s)")
    if not count and options.id is not None:
        print(f"Message {options.id} does not exist or cannot be requeued.", file=sys.stderr)
    return bool(count) or options.id is None


async def _requeue(archive: DeadLetterArchive, retries: DeliveryRetries, letter: DeadLetter) -> bool:
    if letter.delivery_id is None:
        try:
            return await archive.requeue(letter)
        except PublishImpossible as error:
            print(f"{letter.id}: {error}", file=sys.stderr)
            return False
    # Start a new round, as the API does: requeueing the old message could send the notification twice.
    # The message may be forged, so it must not restart a delivery of another channel.
    if not await retries.retry(None, letter.delivery_id, channel=letter.channel):
        reason = "of this channel has not failed, or has been retried too often"
        print(f"{letter.id}: delivery {letter.delivery_id} {reason}, so it is not retried", file=sys.stderr)
        return False
    await letter.message.ack()
    return True


def _show(letter: DeadLetter) -> None:
    for name, value in sorted(letter.message.headers.items()):
        print(escape_controls(f"{name}: {value!s}"))
    print()
    for line in letter.message.body.decode(errors="backslashreplace").split("\n"):
        print(escape_controls(line))
