"""`notify failures` and `notify retry`."""

import sys
import time
from itertools import islice
from typing import Annotated

import typer

from notify_client import Client
from notify_client.cli.connection import connect
from notify_client.cli.exit_codes import CommandFailed, ExitCode
from notify_client.cli.options import AsJson, Limit, ProfileName, Since, Until
from notify_client.cli.output import console, note, print_json, show, show_rows, table
from notify_client.cli.views import failures_table
from notify_client.models import RetryProgress

POLL_INTERVAL = 0.5  # seconds

Channel = Annotated[str | None, typer.Option("--channel", metavar="CHANNEL", help="Only this channel.")]
ErrorClass = Annotated[
    str | None,
    typer.Option(
        "--error-class",
        metavar="CLASS",
        help="temporary, permanent, throttled, timeout, unreachable, unknown or poison.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(failures)
    app.command()(retry)


def failures(
    channel: Channel = None,
    error_class: ErrorClass = None,
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List failed deliveries and why they failed; without --since, those of the last 24 hours.

    Example: notify failures --channel email --since 7d
    """
    with connect(profile) as client:
        listing = client.deliveries.list(
            status="failed",
            channel=channel,
            error_class=error_class,
            user_id=user,
            created_after=since,
            created_before=until,
            page_size=min(limit, 100),
        )
        found = list(islice(listing, limit))
    if as_json:
        print_json(found)
    else:
        show_rows(failures_table(found), "None." if since or until else "None in the last 24 hours.")


def retry(
    delivery_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A failed delivery; notify failures lists them.")
    ] = None,
    status: Annotated[
        str | None, typer.Option("--status", metavar="failed", help="Retry all failed deliveries that match.")
    ] = None,
    channel: Channel = None,
    error_class: ErrorClass = None,
    since: Since = None,
    until: Until = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print how many it would retry.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all are queued again, not until they are delivered.")
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Retry one failed delivery, or all that match; without --since, those of the last 24 hours.

    Examples: notify retry 01a21796-9ba4-7f77-9831-86d22ad5a07c

    notify retry --status failed --channel email --since 7d --dry-run
    """
    filters = (channel, error_class, since, until)
    if delivery_id is not None:
        if status is not None or dry_run or wait or any(filters):
            raise typer.BadParameter(
                "filters, --dry-run and --wait are for many deliveries: leave out the ID", param_hint="ID"
            )
        _retry_one(delivery_id, profile, as_json=as_json)
        return
    if status != "failed":
        raise typer.BadParameter("name a delivery, or pass --status failed to retry many", param_hint="--status")
    with connect(profile) as client:
        found = client.retries.preview(
            channel=channel, error_class=error_class, created_after=since, created_before=until
        ).count
        if dry_run or not found:
            _print_count(found, as_json=as_json)
            return
        _confirm(found, yes=yes)
        job = client.retries.create(channel=channel, error_class=error_class, created_after=since, created_before=until)
        _print_job(_finished(client, job) if wait else job, as_json=as_json)


def _retry_one(delivery_id: str, profile: str | None, *, as_json: bool) -> None:
    with connect(profile) as client:
        delivery = client.deliveries.retry(delivery_id)
    if as_json:
        print_json(delivery)
    else:
        console().print(f"Delivery {delivery.id} is retried, in round {delivery.round}.")
        note(f"Follow it: notify get --watch {delivery.notification_id}")


def _print_count(count: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"count": count})
    else:
        console().print(_matches(count) + ".")


def _matches(count: int) -> str:
    return f"{count} failed delivery matches" if count == 1 else f"{count} failed deliveries match"


def _confirm(count: int, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed(f"{_matches(count)}: pass --yes to retry", ExitCode.USAGE)
    typer.confirm(f"{_matches(count)}. Retry?", abort=True, err=True)


def _finished(client: Client, job: RetryProgress) -> RetryProgress:
    while job.finished_at is None:
        time.sleep(POLL_INTERVAL)
        job = client.retries.get(job.id)
    return job


def _print_job(job: RetryProgress, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        state = "finished" if job.finished_at else "running in the background"
        show(table("job", "retried", "state", rows=[(job.id, job.retried, state)]))
