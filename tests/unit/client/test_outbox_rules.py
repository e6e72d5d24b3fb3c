"""The decisions of the caller's outbox, and its rules for notifications, without a database."""

import inspect
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from notify_client import ConnectionFailed, InvalidRequest, NotifyError, TimedOut, outbox
from notify_client.errors import api_error
from notify_client.outbox.decisions import WINDOW, Verdict, is_too_old, outcome_of, row_backoff
from notify_client.outbox.validation import validate
from notify_client.resources.notifications import create_notification
from notify_gateway.notifications.content import rejection_at
from notify_gateway.notifications.schemas import NotificationRequest
from pydantic import ValidationError
from sqlalchemy.orm import Session

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
VALID: dict[str, Any] = {"user_id": "1", "channels": ["email"], "message": "m"}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"channels": ("email", "telegram", "webhook")},
    {"message": "x" * 16_384},
    {"subject": "s" * 500, "reference": "r" * 200},
    {"to": {"email": "a@example.org"}},
    {
        "to": {"email": "permanent@simulator.invalid"},
        "overrides": {"email": {"html": "<p>", "reply_to": "b@c.example"}},
    },
    {"channels": ["telegram", "webhook"], "to": {"telegram": "@simulator_delivered", "webhook": "https://a.example/"}},
    {"to": {"email": None}, "overrides": {"email": None}},
    {"overrides": {"email": {"list_unsubscribe": "https://a.example/u"}}},
    {"metadata": {"a": "x" * 1000, "b": ""}},
    {"send_at": NOW - HOUR, "expires_at": NOW + HOUR},
    {"send_at": NOW + timedelta(days=90)},
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("user_id", {"user_id": 5}),
    ("user_id", {"user_id": ""}),
    ("user_id", {"user_id": "a/b"}),
    ("user_id", {"user_id": ".."}),
    ("user_id", {"user_id": "u" * 201}),
    ("channels", {"channels": []}),
    ("channels", {"channels": "email"}),
    ("channels", {"channels": ["email", "email"]}),
    ("message", {"message": " \n"}),
    ("message", {"message": "a\x00"}),
    ("message", {"message": "x" * 16_385}),
    ("subject", {"subject": "two\nlines"}),
    ("to.telegram", {"to": {"telegram": "42"}}),
    ("to.telegram", {"channels": ["telegram"], "to": {"telegram": "nobody"}}),
    ("to.email", {"to": {"email": "nobody"}}),
    ("to.pigeon", {"to": {"pigeon": "1"}}),
    ("to.webhook", {"channels": ["webhook"], "to": {"webhook": "ftp://a.example/"}}),
    ("overrides.email", {"channels": ["telegram"], "overrides": {"email": {"html": "<p>"}}}),
    ("overrides.email.html", {"overrides": {"email": {"html": " "}}}),
    ("overrides.email.reply_to", {"overrides": {"email": {"reply_to": "b"}}}),
    ("overrides.email.list_unsubscribe", {"overrides": {"email": {"list_unsubscribe": "http://a.example/"}}}),
    ("reference", {"reference": "tab\t"}),
    ("metadata", {"metadata": {str(number): "" for number in range(51)}}),
    ("metadata.a", {"metadata": {"a": 1}}),
    ("send_at", {"send_at": NOW + timedelta(days=90, seconds=1)}),
    ("send_at", {"send_at": NOW.replace(tzinfo=None)}),
    ("expires_at", {"expires_at": NOW}),
    ("expires_at", {"send_at": NOW + HOUR, "expires_at": NOW + HOUR}),
]


def gateway_accepts(body: dict[str, Any]) -> bool:
    try:
        return rejection_at(NotificationRequest.model_validate(body), NOW) is None
    except ValidationError:
        return False


def body_of(change: dict[str, Any]) -> dict[str, Any]:
    return dict(create_notification(**{**VALID, **change}).body or {})


@pytest.mark.parametrize("change", ACCEPTED)
def test_notification_that_the_gateway_accepts_is_enqueued(change: dict[str, Any]) -> None:
    body = body_of(change)
    assert gateway_accepts({**body, "channels": list(body["channels"])})
    validate(body, NOW)


@pytest.mark.parametrize(("field", "change"), REFUSED)
def test_notification_that_the_gateway_refuses_is_not_enqueued(field: str, change: dict[str, Any]) -> None:
    assert not gateway_accepts(body_of(change))
    with pytest.raises(InvalidRequest) as raised:
        validate(body_of(change), NOW)
    assert field in [each.field for each in raised.value.errors]
    assert raised.value.code == "invalid_request"


def test_refused_notification_is_not_in_the_session_and_its_values_not_in_the_error() -> None:
    with Session() as session:
        with pytest.raises(InvalidRequest) as raised:
            outbox.enqueue(session, user_id="1", channels=["email"], message="m", to={"email": "private"})
        assert not session.new
    assert "private" not in f"{raised.value!r} {raised.value}"


def test_enqueue_has_the_arguments_of_create() -> None:
    of_create = inspect.signature(create_notification).parameters
    session, *others = inspect.signature(outbox.enqueue).parameters.values()
    assert session.name == "session"
    assert others == [each for each in of_create.values() if each.name != "idempotency_key"]


def test_client_does_not_import_sqlalchemy() -> None:
    code = "import sys, notify_client; print('sqlalchemy' in sys.modules, 'typer' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    assert found.stdout == "False False\n"


def problem(status: int, code: str) -> NotifyError:
    content = f'{{"title": "", "status": {status}, "detail": "d", "code": "{code}"}}'
    return api_error(status, content.encode(), 7.0)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (problem(422, "invalid_request"), Verdict.REFUSED),
        (problem(422, "idempotency_key_reused"), Verdict.REFUSED),
        (problem(413, "body_too_large"), Verdict.REFUSED),
        (problem(400, "bad_request"), Verdict.REFUSED),
        (api_error(413, b"<html>", None), Verdict.REFUSED),
        (ConnectionFailed("refused", maybe_executed=False), Verdict.UNREACHABLE),
        (ConnectionFailed("broken"), Verdict.UNKNOWN),
        (TimedOut("slow"), Verdict.UNKNOWN),
        (problem(503, "unavailable"), Verdict.UNKNOWN),
        (problem(500, "internal_error"), Verdict.UNKNOWN),
        (api_error(502, b"<html>", None), Verdict.UNKNOWN),
        (api_error(302, b"", None), Verdict.UNKNOWN),
        (api_error(201, b"<html>", None), Verdict.UNKNOWN),
        (problem(401, "unauthenticated"), Verdict.NOT_EXECUTED),
        (problem(403, "forbidden"), Verdict.NOT_EXECUTED),
        (problem(404, "not_found"), Verdict.NOT_EXECUTED),
        (problem(408, "request_timed_out"), Verdict.NOT_EXECUTED),
        (problem(421, "foreign_host"), Verdict.NOT_EXECUTED),
        (problem(429, "rate_limited"), Verdict.NOT_EXECUTED),
    ],
)
def test_only_what_the_row_itself_is_to_blame_for_is_refused(error: NotifyError, verdict: Verdict) -> None:
    outcome = outcome_of(error)
    assert outcome.verdict is verdict
    assert outcome.error is not None
    assert outcome.is_final == (verdict is Verdict.REFUSED)


def test_unknown_outcome_counts_as_an_attempt() -> None:
    assert outcome_of(ConnectionFailed("broken")).maybe_executed
    assert not outcome_of(ConnectionFailed("refused", maybe_executed=False)).maybe_executed
    assert not outcome_of(problem(429, "rate_limited")).maybe_executed
    assert not outcome_of(problem(422, "invalid_request")).maybe_executed
    # An earlier attempt with this key was executed.
    assert outcome_of(problem(422, "idempotency_key_reused")).maybe_executed


def test_row_is_too_old_an_hour_before_the_gateway_forgets_its_key() -> None:
    assert timedelta(hours=23) == WINDOW
    assert not is_too_old(None, NOW)
    assert not is_too_old(NOW - WINDOW + timedelta(microseconds=1), NOW)
    assert is_too_old(NOW - WINDOW, NOW)


def test_failing_row_waits_longer_each_time() -> None:
    waits = [row_backoff(attempts).total_seconds() for attempts in range(1, 12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert row_backoff(10**9).total_seconds() == 300
