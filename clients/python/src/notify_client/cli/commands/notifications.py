"""`notify send`, `get`, `list` and `cancel`."""

import asyncio
import sys
from datetime import datetime
from itertools import islice
from typing import Annotated, TypeAlias, cast
from uuid import UUID

import typer

from notify_client import Client
from notify_client.cli.connection import connect
from notify_client.cli.exit_codes import CommandFailed, ExitCode
from notify_client.cli.following import watch
from notify_client.cli.options import AsJson, Limit, ProfileName, Since, Until, moment, pairs
from notify_client.cli.output import console, note, print_json, show, show_rows
from notify_client.cli.views import notification_view, notifications_table
from notify_client.models import Notification
from notify_client.resources.notifications import Recipients

Channels: TypeAlias = Annotated[
    list[str], typer.Option("--channel", metavar="CHANNEL", help="telegram, email or webhook; may be repeated.")
]
To: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="CHANNEL=RECIPIENT", help="The recipient, instead of the one stored for the user."),
]
Reference: TypeAlias = Annotated[
    str | None, typer.Option("--reference", metavar="TEXT", help="Your reference, such as order-5512.")
]
Metadata: TypeAlias = Annotated[
    list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="May be repeated.")
]
SendAt: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--send-at", parser=moment, metavar="TIME", help="Send it at this time: 2026-12-24T18:00, or 2h from now."
    ),
]
ExpiresAt: TypeAlias = Annotated[
    datetime | None, typer.Option("--expires-at", parser=moment, metavar="TIME", help="Do not send it after this time.")
]
IdempotencyKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", metavar="KEY", help="Within 24 hours, requests with the same key create one notification."
    ),
]
Timeout: TypeAlias = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0, help="With --wait: stop waiting after this time.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(send)
    app.command()(get)
    app.command("list")(list_)
    app.command()(cancel)


def send(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message; - reads it from the standard input.")],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Your id of the user.")],
    channel: Channels,
    subject: Annotated[str | None, typer.Option("--subject", metavar="TEXT", help="The subject of an e-mail.")] = None,
    to: To = None,
    reference: Reference = None,
    metadata: Metadata = None,
    send_at: SendAt = None,
    expires_at: ExpiresAt = None,
    idempotency_key: IdempotencyKey = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome; exit with 1 unless all is sent.")] = False,
    timeout: Timeout = 60,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Send a notification, and print its id. The gateway has then stored it.

    Example: notify send --user 123 --channel email --to email=ann@example.org --subject Hello "Your order has left."
    """
    with connect(profile) as client:
        created = client.notifications.create(
            user_id=user,
            channels=channel,
            message=sys.stdin.read() if text == "-" else text,
            subject=subject,
            to=cast("Recipients | None", pairs(to or (), "--to", "CHANNEL=RECIPIENT")),
            reference=reference,
            metadata=pairs(metadata or (), "--metadata"),
            send_at=send_at,
            expires_at=expires_at,
            idempotency_key=idempotency_key,
        )
        if wait:
            _finish(_final(client, created.id, timeout), as_json=as_json)
    if as_json:
        print_json(created)
    else:
        console().print(str(created.id))
        note(f"Follow it: notify get --watch {created.id}")


def get(
    notification_id: Annotated[str, typer.Argument(metavar="ID", help="The notification's id.")],
    follow: Annotated[
        bool, typer.Option("--watch", help="Follow it until it is final; exit with 1 unless all is sent.")
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Show a notification, its deliveries and their attempts.

    Example: notify get --watch 01a21796-9ba4-7f77-9831-86d22ad5a07b

    With --watch, --json prints a line for each state.
    """
    if follow:
        _exit(asyncio.run(watch(profile, notification_id, as_json=as_json)))
    with connect(profile) as client:
        _show(client.notifications.get(notification_id), as_json=as_json)


def list_(
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")] = None,
    reference: Reference = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", metavar="STATUS", help="pending, sent, partially_sent, failed or cancelled; may be repeated."
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option("--channel", metavar="CHANNEL", help="Only notifications with a delivery on this channel."),
    ] = None,
    metadata: Metadata = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List notifications, newest first; without other filters, those of the last 24 hours.

    Example: notify list --user 123 --status failed --since 7d
    """
    with connect(profile) as client:
        found = list(
            islice(
                client.notifications.list(
                    user_id=user,
                    reference=reference,
                    status=status or None,
                    channel=channel,
                    metadata=pairs(metadata or (), "--metadata"),
                    created_after=since,
                    created_before=until,
                    page_size=min(limit, 100),
                ),
                limit,
            )
        )
    if as_json:
        print_json(found)
    else:
        filters = (user, reference, status, channel, metadata, since, until)
        show_rows(notifications_table(found), "None." if any(filters) else "None in the last 24 hours.")


def cancel(
    notification_id: Annotated[str, typer.Argument(metavar="ID", help="The notification's id.")],
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Cancel the deliveries that have not started; exit with 6 if there are others.

    Example: notify cancel 01a21796-9ba4-7f77-9831-86d22ad5a07b
    """
    with connect(profile) as client:
        _show(client.notifications.cancel(notification_id), as_json=as_json)


def _show(notification: Notification, *, as_json: bool) -> None:
    if as_json:
        print_json(notification)
    else:
        show(notification_view(notification))


def _exit(notification: Notification) -> None:
    raise typer.Exit(ExitCode.OK if notification.status == "sent" else ExitCode.FAILED)


def _final(client: Client, notification_id: UUID, timeout: float) -> Notification:
    try:
        note(f"Accepted {notification_id}.")  # before anything can go wrong
        return client.notifications.wait(notification_id, timeout)
    except KeyboardInterrupt:
        raise CommandFailed(
            f"interrupted: {notification_id} stays accepted; follow it: notify get --watch {notification_id}",
            ExitCode.INTERRUPTED,
        ) from None


def _finish(notification: Notification, *, as_json: bool) -> None:
    _show(notification, as_json=as_json)
    _exit(notification)
