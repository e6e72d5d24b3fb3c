"""Options that several commands share, and how their values are parsed."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeAlias

import typer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
EVERYWHERE = "Options of every command"

ProfileName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="NAME", envvar="NOTIFY_PROFILE", help="Use this profile.", rich_help_panel=EVERYWHERE
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=EVERYWHERE)]


def moment(text: str, *, sign: int = 1, now: datetime | None = None) -> datetime:
    """Return the time that is written as ISO 8601, or as a time span from now such as 30m, 2h or 7d."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and unit in UNITS:
        try:
            return (now or datetime.now(UTC)) + sign * timedelta(**{UNITS[unit]: int(number)})
        except OverflowError:
            raise typer.BadParameter(f"{text} is too far away") from None
    try:
        return datetime.fromisoformat(text).astimezone()  # a time without an offset is a local one
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a time such as 2026-12-24T18:00 nor a time span such as 2h"
        ) from None


def past(text: str) -> datetime:
    """Return the time; a time span counts back from now."""
    return moment(text, sign=-1)


Since: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--since", parser=past, metavar="TIME", help="Created after this time, such as 2h, 7d or 2026-12-24T18:00."
    ),
]
Until: TypeAlias = Annotated[
    datetime | None, typer.Option("--until", parser=past, metavar="TIME", help="Created before this time.")
]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", metavar="NUMBER", min=1, help="Print at most this many.")]


def pairs(values: Iterable[str], option: str, form: str = "NAME=VALUE") -> dict[str, str] | None:
    """Return the values of a repeated option of this form, or None if there is none."""
    result = {}
    for each in values:
        name, separator, value = each.partition("=")
        if not (separator and name):
            raise typer.BadParameter(f"{each!r} is not {form}", param_hint=option)
        result[name] = value
    return result or None
