"""`notify keys`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from notify_client.cli.connection import connect
from notify_client.cli.options import AsJson, ProfileName, moment
from notify_client.cli.output import console, note, print_json, show_rows, table
from notify_client.cli.views import local
from notify_client.models import Key

app = typer.Typer(no_args_is_help=True, help="The API keys of the tenant; they need the scope admin.")


@app.command("list")
def list_keys(as_json: AsJson = False, profile: ProfileName = None) -> None:
    """List the keys, newest first.

    Example: notify keys list
    """
    with connect(profile) as client:
        keys = list(client.keys.list())
    if as_json:
        print_json(keys)
        return
    rows = (
        (each.id, each.name, " ".join(each.scopes), _state(each), each.last_used_at and local(each.last_used_at))
        for each in keys
    )
    show_rows(table("id", "name", "scopes", "state", "last used", rows=rows), "None.")


@app.command("create")
def create_key(
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="send, read, admin, operator, recipients:read, recipients:write, opt-outs:clear, trace; repeatable.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="A name that says what it is for.")] = "",
    expires_at: Annotated[
        datetime | None,
        typer.Option("--expires-at", parser=moment, metavar="TIME", help="The key expires at this time, such as 90d."),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Create a test key, with which nothing is really sent.")] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Create a key, and print it. It cannot be read again.

    Example: notify keys create --name checkout --scope send --expires-at 90d
    """
    with connect(profile) as client:
        created = client.keys.create(scopes=scope, name=name, expires_at=expires_at, test=test)
    if as_json:
        print_json(created)
    else:
        note(f"Key {created.id}. It is printed only now:")
        console().print(created.token)


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id; notify keys list prints it.")],
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Revoke a key.

    Example: notify keys revoke 01a21796-9ba4-7f77-9831-86d22ad5a07d
    """
    with connect(profile) as client:
        client.keys.revoke(key_id)
    if as_json:
        print_json({})
    else:
        note(f"Key {key_id} is revoked.")


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "test" if key.test else "valid"
