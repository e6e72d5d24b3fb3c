"""The root command. A module of `commands` has one group of them; add groups of subcommands to `app` here."""

from typing import Annotated

import typer

from notify_client.cli.commands import deliveries, events, imports, keys, login, notifications, users
from notify_client.cli.exit_codes import OneLineErrors
from notify_client.cli.outbox_group import OutboxGroup
from notify_client.config import USER_AGENT

EPILOG = (
    "Exit codes: 0 success; 1 failed deliveries or rows; 2 invalid arguments or request; 3 authentication or "
    "permission; 4 not found; 5 unavailable; 6 the state does not allow it; 7 timed out waiting; 130 interrupted."
)

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(USER_AGENT.replace("/", " "))
        raise typer.Exit


@app.callback()
def notify(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Send notifications and follow them.

    Begin with `notify login`, or set NOTIFY_URL and NOTIFY_API_KEY.
    """


for module in (notifications, events, deliveries, imports, login):
    module.add_to(app)
app.add_typer(users.app, name="users")
app.add_typer(keys.app, name="keys")
app.add_typer(
    typer.Typer(cls=OutboxGroup, no_args_is_help=True),
    name="outbox",
    help="Send what was committed to the caller's outbox, and care for held rows.",
)
