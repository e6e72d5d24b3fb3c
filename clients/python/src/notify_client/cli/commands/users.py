"""`notify users`."""

from typing import Annotated

import typer

from notify_client.cli.connection import connect
from notify_client.cli.options import AsJson, ProfileName
from notify_client.cli.output import note, print_json, show_rows, table
from notify_client.cli.views import local
from notify_client.requests import UNSET

app = typer.Typer(no_args_is_help=True, help="The recipients and opt-outs that are stored for users.")

User = Annotated[str, typer.Argument(metavar="USER", help="Your id of the user.")]
Channel = Annotated[str, typer.Argument(metavar="CHANNEL", help="telegram, email or webhook.")]


@app.command("get")
def get_user(user: User, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show what is stored for a user.

    Example: notify users get 123
    """
    with connect(profile) as client:
        stored = list(client.users.list(user))
    if as_json:
        print_json(stored)
        return
    rows = (
        (each.channel, each.recipient, "yes" if each.opted_out else "no", local(each.updated_at)) for each in stored
    )
    show_rows(table("channel", "recipient", "opted out", "updated", rows=rows), "None.")


@app.command("set")
def set_channel(
    user: User,
    channel: Channel,
    recipient: Annotated[
        str | None, typer.Option("--recipient", metavar="TEXT", help="Where the user receives notifications.")
    ] = None,
    opted_out: Annotated[
        bool | None, typer.Option("--opt-out/--opt-in", help="Whether the user wants nothing on this channel.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Store a user's recipient or opt-out on a channel; what is not given stays as it is.

    Example: notify users set 123 email --recipient ann@example.org
    """
    if recipient is None and opted_out is None:
        raise typer.BadParameter("pass --recipient, --opt-out or --opt-in", param_hint="--recipient")
    with connect(profile) as client:
        stored = client.users.set(
            user,
            channel,
            recipient=UNSET if recipient is None else recipient,
            opted_out=UNSET if opted_out is None else opted_out,
        )
    if as_json:
        print_json(stored or {})
    else:
        note(f"Stored for {user} and {channel}.")


@app.command("delete")
def delete_channel(user: User, channel: Channel, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Delete a user's recipient on a channel. An opt-out stays.

    Example: notify users delete 123 email
    """
    with connect(profile) as client:
        client.users.delete(user, channel)
    if as_json:
        print_json({})
    else:
        note(f"The recipient of {user} on {channel} is deleted.")
