"""`notify-gateway reconcile`: compare PostgreSQL and RabbitMQ, and publish again what only PostgreSQL knows."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime

from notify_common.contracts.ids import accepted_at
from notify_common.runtime.logging import escape_controls
from notify_database.engine import PostgresSettings, create_engine

from notify_gateway.reconciliation.broker_contents import (
    BrokerContents,
    DeliveryRound,
    StillConsuming,
    read_contents,
)
from notify_gateway.reconciliation.open_deliveries import OpenDeliveries, OpenDelivery
from notify_gateway.settings import ManagementSettings


class ReconcileSettings(PostgresSettings, ManagementSettings):
    """Connection settings. The RabbitMQ user needs read access to all queues, and the management API."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `notify-gateway reconcile`."""
    parser.add_argument("--apply", action="store_true", help="publish again; without it, nothing is changed")
    parser.add_argument("--list", action="store_true", help="also list each delivery")


@dataclass(frozen=True, slots=True)
class Differences:
    """What PostgreSQL and RabbitMQ do not know of each other."""

    stranded: Sequence[OpenDelivery]
    """Open deliveries with neither an outbox row nor a message that will end them."""
    unknown_requests: Mapping[DeliveryRound, str]
    """Requests whose delivery, or its round, is not in PostgreSQL, and the ids of their notifications."""
    unknown_results: Set[DeliveryRound]
    """Results for the same."""


def compare(
    open_deliveries: Sequence[OpenDelivery], contents: BrokerContents, unknown: Set[DeliveryRound]
) -> Differences:
    """Return the differences; `unknown` are the rounds in `contents` that PostgreSQL does not know."""
    # A message of an earlier or later round does not end the delivery.
    expected = contents.requests.keys() | contents.ended
    return Differences(
        stranded=[each for each in open_deliveries if DeliveryRound(each.id, each.round) not in expected],
        unknown_requests={each: contents.requests[each] for each in contents.requests.keys() & unknown},
        unknown_results=contents.results & unknown,
    )


async def run(settings: ReconcileSettings, options: argparse.Namespace) -> bool:
    """Compare both, and with `--apply` put stranded deliveries back into the outbox; return whether it succeeded."""
    if not (management := settings.management_urls()):
        print("Set RABBITMQ_MANAGEMENT_URL: only the management API lists all retry queues.", file=sys.stderr)
        return False
    engine = create_engine(settings, pool_size=1, statement_timeout=0)
    deliveries = OpenDeliveries(engine)
    try:
        # PostgreSQL is read first: a delivery that a relay publishes meanwhile has an outbox row, or is in RabbitMQ.
        outbox_rows, found = await deliveries.outbox_rows(), await deliveries.without_outbox_row()
        try:
            contents = await read_contents(settings, management)
        except StillConsuming as error:
            print(error, file=sys.stderr)
            return False
        unknown = await deliveries.unknown(contents.requests.keys() | contents.results)
        differences = compare(found, contents, unknown)
        _report(contents, differences, outbox_rows)
        if options.list:
            _list(differences)
        if options.apply:
            print(f"{await deliveries.put_back(differences.stranded)} deliveries were put back into the outbox.")
        elif differences.stranded:
            print("Nothing was changed. With --apply, the stranded deliveries are published again.")
    finally:
        await engine.dispose()
    return True


def _report(contents: BrokerContents, differences: Differences, outbox_rows: int) -> None:
    requests, results = len(differences.unknown_requests), len(differences.unknown_results)
    by_channel = Counter(each.channel for each in differences.stranded)
    channels = ", ".join(f"{channel} {count}" for channel, count in sorted(by_channel.items()))
    for where, count, what in (
        ("RabbitMQ", len(contents.requests) - requests, "deliveries that will be attempted, as PostgreSQL expects"),
        ("RabbitMQ", len(contents.results) - results, "deliveries with results that PostgreSQL will get"),
        ("RabbitMQ", requests, "unknown to PostgreSQL that will be sent; their results will be refused"),
        ("RabbitMQ", results, "unknown to PostgreSQL whose results will be refused"),
        ("RabbitMQ", contents.unreadable, "unreadable messages"),
        (
            "PostgreSQL",
            outbox_rows,
            "deliveries in the outbox; those that were published after a backup are sent twice",
        ),
        ("PostgreSQL", len(differences.stranded), "stranded: open, not in the outbox, without a message"),
    ):
        print(f"{where:<10} {count:>9,}  {what}")
    if channels:
        print(
            f"The stranded ones: {channels}. Those that were sent before their messages were lost will be sent twice."
        )


def _list(differences: Differences) -> None:
    for each in differences.stranded:
        print(f"stranded  notification {each.notification_id}  delivery {each.id}  {each.channel}")
    for (delivery_id, round_), notification_id in sorted(differences.unknown_requests.items()):
        line = f"unknown request  notification {notification_id}  delivery {delivery_id}  round {round_}"
        print(escape_controls(line))
    for delivery_id, round_ in sorted(differences.unknown_results):
        accepted = datetime.fromtimestamp(accepted_at(delivery_id), UTC).isoformat(timespec="seconds")
        print(f"unknown result  delivery {delivery_id}  round {round_}  accepted {accepted}")
