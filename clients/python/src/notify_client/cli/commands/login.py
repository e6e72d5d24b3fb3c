"""`notify login`."""

import sys
from typing import Annotated

import typer

from notify_client import Client, PermissionDenied
from notify_client.cli.connection import naming
from notify_client.cli.options import AsJson
from notify_client.cli.output import note, print_json
from notify_client.cli.profiles import DEFAULT, NAME, Profile, config_file, read, write


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(login)


def login(
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="The gateway; asked for if it is not given.")
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME", envvar="NOTIFY_PROFILE", help="The profile to store.")
    ] = DEFAULT,
    api_key_stdin: Annotated[
        bool, typer.Option("--api-key-stdin", help="Read the API key from the standard input.")
    ] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Whether to try the key.")] = True,
    as_json: AsJson = False,
) -> None:
    """Store a gateway and an API key as a profile, in ~/.config/notify/config.toml.

    Example: notify login --url https://notify.example.org --profile production

    NOTIFY_URL and NOTIFY_API_KEY override the profile `default`, but no profile that --profile or NOTIFY_PROFILE names.
    """
    if not NAME.fullmatch(profile):
        raise typer.BadParameter("use letters, digits, - and _", param_hint="--profile")
    profiles = read(config_file())
    entered = Profile(url or _ask("URL of the gateway", "--url"), _api_key(from_stdin=api_key_stdin))
    stored = _checked(entered, connect=check)
    write(config_file(), {**profiles, profile: stored})
    if as_json:
        print_json({"profile": profile, "url": stored.url, "file": str(config_file())})
    else:
        note(f"Stored the profile {profile} in {config_file()}.")


def _ask(question: str, option: str) -> str:
    if not sys.stdin.isatty():
        raise typer.BadParameter("it is needed, because there is no terminal to ask for it", param_hint=option)
    return str(typer.prompt(question, err=True))


def _api_key(*, from_stdin: bool) -> str | None:
    if from_stdin:
        return sys.stdin.readline().strip() or None
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "it is needed, because there is no terminal to ask for it", param_hint="--api-key-stdin"
        )
    question = "API key (empty for a gateway without keys)"
    return str(typer.prompt(question, default="", hide_input=True, show_default=False, err=True)).strip() or None


def _checked(profile: Profile, *, connect: bool) -> Profile:
    """Return the profile in its stored form; raise an error if it is malformed, or the gateway does not accept it."""
    with Client(profile.url, profile.api_key) as client, naming(profile):
        if connect:
            try:
                next(client.notifications.list(page_size=1), None)
            except PermissionDenied:
                note("The key is valid, but may not read notifications.")
        # Without a key, the client would use NOTIFY_API_KEY, which does not belong into the profile.
        return Profile(client.config.base_url, profile.api_key)
