"""Check a notification before it is enqueued, because the caller can no longer react when the gateway refuses it.

Tests hold these rules to the gateway's. They leave to the gateway what its settings decide, such as whether a channel
needs a recipient, and the details of addresses.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from notify_client.errors import InvalidRequest
from notify_client.models import FieldProblem, Problem

INVALID = 422
LONGEST_SCHEDULE = timedelta(days=90)


def _readable(text: str) -> str:
    if "\x00" in text or not text.strip():
        raise ValueError("must contain text, and no NUL character")
    return text


def _not_relative(user_id: str) -> str:
    if user_id in {".", ".."}:
        raise ValueError("must not be a relative segment of a path")
    return user_id


UserId = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f/]+$"), AfterValidator(_not_relative)
]
Subject = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00\r\n]*$")]
Reference = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
MetadataText = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]


class _Recipients(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # pydantic reads it

    telegram: Annotated[str, Field(pattern=r"^(-?[1-9][0-9]{0,18}|@[A-Za-z][A-Za-z0-9_]{3,31})$")] | None
    email: Annotated[str, Field(pattern="@")] | None
    webhook: Annotated[str, Field(pattern="^https?://")] | None


class _EmailOptions(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # pydantic reads it

    html: Annotated[str, Field(min_length=1, max_length=65_536), AfterValidator(_readable)] | None
    reply_to: Annotated[str, Field(pattern="@")] | None
    list_unsubscribe: Annotated[str, Field(pattern="(?i)^https:")] | None


class _Overrides(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # pydantic reads it

    email: _EmailOptions | None


class _Notification(TypedDict, total=False):
    user_id: UserId
    channels: Annotated[list[str], Field(min_length=1)]
    message: Annotated[str, Field(min_length=1, max_length=16_384), AfterValidator(_readable)]
    subject: Subject
    to: _Recipients
    overrides: _Overrides
    reference: Reference
    metadata: Annotated[dict[MetadataKey, MetadataText], Field(max_length=50)]
    send_at: AwareDatetime
    expires_at: AwareDatetime


NOTIFICATION = TypeAdapter(_Notification)


def validate(body: Mapping[str, object], now: datetime) -> None:
    """Raise `InvalidRequest` if the gateway would refuse the body at `now`."""
    try:
        notification = NOTIFICATION.validate_python({**body, "channels": _as_list(body["channels"])})
    except ValidationError as error:
        # The values must not be repeated, because errors are logged.
        found = error.errors(include_input=False, include_url=False, include_context=False)
        problems = [_problem(".".join(map(str, each["loc"])), each["msg"]) for each in found]
    else:
        problems = _across_fields(notification, now)
    if problems:
        detail = "; ".join(f"{each.field}: {each.detail}" for each in problems)
        raise InvalidRequest(Problem(title="", status=INVALID, code="invalid_request", detail=detail, errors=problems))


def _problem(field: str, detail: str) -> FieldProblem:
    return FieldProblem(location="body", field=field, detail=detail)


def _as_list(channels: object) -> object:
    return list(channels) if isinstance(channels, tuple) else channels


def _across_fields(notification: _Notification, now: datetime) -> list[FieldProblem]:
    """Return what is wrong with fields that are valid on their own."""
    channels, problems = notification["channels"], []

    def check(field: str, valid: bool, detail: str) -> None:
        if not valid:
            problems.append(_problem(field, detail))

    check("channels", len(set(channels)) == len(channels), "must not contain a channel twice")
    for channel in notification.get("to", {}):
        check(f"to.{channel}", channel in channels, "is not one of the channels of this notification")
    email = notification.get("overrides", {}).get("email")
    check("overrides.email", email is None or "email" in channels, "requires the channel email")
    send_at, expires_at = notification.get("send_at"), notification.get("expires_at")
    if send_at is not None:
        check("send_at", send_at <= now + LONGEST_SCHEDULE, f"must not be more than {LONGEST_SCHEDULE.days} days ahead")
    if expires_at is not None:
        check("expires_at", expires_at > now, "must be later than now")
        check("expires_at", send_at is None or expires_at > send_at, "must be later than send_at")
    return problems
