"""`notify tail`."""

from typing import Annotated

import typer
from rich.text import Text

from notify_client import StatusEvent
from notify_client.cli.connection import connect
from notify_client.cli.options import AsJson, ProfileName
from notify_client.cli.output import console, note, print_json_line, styled
from notify_client.cli.views import local, words

STATUSES = {"sent", "retrying", "failed", "expired", "cancelled"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tail)


def tail(
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", metavar="CHANNEL", help="Only this channel.")] = None,
    notification: Annotated[
        str | None, typer.Option("--notification", metavar="ID", help="Only this notification.")
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", metavar="STATUS", help="sent, retrying, failed, expired or cancelled; may be repeated."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="NUMBER", min=1, help="End after this many events.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Print status changes of deliveries as they happen, until Ctrl-C.

    Example: notify tail --channel email --status failed --json
    """
    if unknown := set(status or ()) - STATUSES:
        raise typer.BadParameter(f"no event has the status {', '.join(sorted(unknown))}", param_hint="--status")
    printed = 0
    with (
        connect(profile) as client,
        client.events.stream(user_id=user, channel=channel, notification_id=notification) as stream,
    ):
        note("Waiting for events; Ctrl-C ends this.")
        for event in stream:
            if isinstance(event, StatusEvent):
                if status and event.status not in status:
                    continue
                print_json_line(event) if as_json else console().print(_line(event))
                printed += 1
            elif as_json:
                print_json_line(event)
            else:
                note("Events are missing here: the gateway could not repeat them.")
            if printed == count:
                return


def _line(event: StatusEvent) -> Text:
    error = " ".join(filter(None, (event.error_class, event.error_code)))
    parts = (
        local(event.changed_at), str(event.notification_id), event.channel.ljust(8), styled(event.status),
        f"attempt {event.attempt}", f"user {event.user_id}", error,
    )  # fmt: skip
    return words(*parts)
