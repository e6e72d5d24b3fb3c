"""Which requests the client sends again, and when."""

import httpx
import pytest
from notify_client import (
    ApiError,
    AuthenticationFailed,
    Conflict,
    ConnectionFailed,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    QueryTimedOut,
    RateLimited,
    ServerError,
    TimedOut,
    Unavailable,
    UnexpectedResponse,
)
from notify_client.config import Config
from notify_client.errors import api_error
from notify_client.models import Notification
from notify_client.requests import Request, nothing, one
from notify_client.retrying import Call, backoff, connection_error, is_retryable, retry_after

CONFIG = Config("http://gateway", None, timeout=1.0, max_retries=2)
GET = Request(method="GET", path="/v1/notifications/1", read=one(Notification))
DELETE = Request(method="DELETE", path="/v1/keys/1", read=nothing)


def problem(status: int, code: str, retry_after: float | None = None) -> ApiError:
    content = (
        f'{{"type": "/x", "title": "X", "status": {status}, "detail": "why", "code": "{code}", "request_id": "r"}}'
    )
    return api_error(status, content.encode(), retry_after)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthenticated", AuthenticationFailed),
        (404, "not_found", NotFound),
        (409, "not_retryable", Conflict),
        (422, "invalid_request", InvalidRequest),
        (422, "idempotency_key_reused", IdempotencyKeyReused),
        (429, "too_many_in_progress", RateLimited),
        (500, "internal_error", ServerError),
        (503, "overloaded", Unavailable),
        (504, "query_timed_out", QueryTimedOut),
        (409, "a_code_of_a_newer_gateway", Conflict),
        (418, "a_code_of_a_newer_gateway", InvalidRequest),
        (507, "a_code_of_a_newer_gateway", ServerError),
    ],
)
def test_errors_are_chosen_by_code_and_unknown_codes_by_status(status: int, code: str, kind: type[ApiError]) -> None:
    error = problem(status, code)
    assert type(error) is kind
    assert (error.status, error.code, error.detail, error.request_id) == (status, code, "why", "r")
    assert str(error) == f"why ({status} {code}, request r)"


@pytest.mark.parametrize(
    ("status", "kind"), [(301, UnexpectedResponse), (400, InvalidRequest), (502, Unavailable), (503, Unavailable)]
)
def test_response_of_a_proxy_becomes_an_error_of_its_status(status: int, kind: type[ApiError]) -> None:
    error = api_error(status, b"<html>Bad Gateway</html>", None)
    assert type(error) is kind
    assert (error.status, error.code, error.request_id, error.errors) == (status, f"http_{status}", None, ())


@pytest.mark.parametrize(
    ("error", "always", "if_idempotent"),
    [
        (problem(429, "rate_limited"), True, True),
        (problem(408, "request_timed_out"), True, True),
        (problem(503, "unavailable"), False, True),
        (api_error(502, b"", None), False, True),
        (api_error(504, b"", None), False, True),
        (connection_error(httpx.ConnectError("refused")), True, True),
        (connection_error(httpx.ConnectTimeout("")), True, True),
        (connection_error(httpx.ReadError("")), False, True),
        (connection_error(httpx.ReadTimeout("")), False, True),
        (connection_error(httpx.RemoteProtocolError("disconnected")), False, True),
        (problem(504, "query_timed_out"), False, False),
        (problem(500, "internal_error"), False, False),
        (problem(404, "not_found"), False, False),
        (problem(409, "conflict"), False, False),
        (problem(422, "idempotency_key_reused"), False, False),
        (problem(429, "rate_limited", retry_after=61), False, False),
    ],
    ids=repr,
)
def test_request_is_repeated_only_if_that_is_safe_and_may_help(
    error: ApiError | ConnectionFailed, always: bool, if_idempotent: bool
) -> None:
    assert is_retryable(error, idempotent=False) is always
    assert is_retryable(error, idempotent=True) is if_idempotent


def test_timeouts_are_connection_errors_of_their_own() -> None:
    assert type(connection_error(httpx.ReadTimeout(""))) is TimedOut
    assert type(connection_error(httpx.ConnectTimeout(""))) is TimedOut
    assert str(connection_error(httpx.ReadTimeout(""))) == "ReadTimeout"
    assert type(connection_error(httpx.ReadError("reset"))) is ConnectionFailed


def longest(_shortest: float, longest: float) -> float:
    return longest


def shortest(shortest: float, _longest: float) -> float:
    return shortest


def test_waits_double_up_to_a_limit_with_full_jitter() -> None:
    assert [backoff(retries, jitter=longest) for retries in range(6)] == [0.5, 1, 2, 4, 8, 8]
    assert backoff(10_000, jitter=longest) == 8
    assert backoff(3, jitter=shortest) == 0


def test_wait_is_never_shorter_than_retry_after() -> None:
    assert backoff(0, 7.0, jitter=shortest) == 7
    assert backoff(0, 7.0, jitter=longest) == 7.5


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0), ("17", 17), ("", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None)]
)
def test_retry_after_is_read_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after(httpx.Headers({"Retry-After": value})) == seconds


def test_call_gives_up_after_the_allowed_retries() -> None:
    call = Call(GET, CONFIG)
    error = problem(503, "unavailable")
    for _ in range(CONFIG.max_retries):
        call.wait_after(error)
    with pytest.raises(Unavailable) as raised:
        call.wait_after(error)
    assert raised.value is error


def test_error_of_httpx_is_the_cause_of_ours() -> None:
    cause = httpx.ReadError("reset")
    with pytest.raises(ConnectionFailed, match="reset") as raised:
        Call(GET, Config("http://gateway", None, timeout=1.0, max_retries=0)).wait_after(cause)
    assert raised.value.__cause__ is cause


def test_repeated_deletion_that_finds_nothing_has_succeeded() -> None:
    missing = httpx.Response(404, content=b'{"code": "not_found"}')
    call = Call(DELETE, CONFIG)
    with pytest.raises(NotFound):
        call.result(missing)
    call.wait_after(httpx.ConnectError("refused"))  # certainly not executed
    with pytest.raises(NotFound):
        call.result(missing)
    call.wait_after(httpx.ReadError("reset"))  # perhaps executed
    call.result(missing)


def test_success_with_other_content_is_an_error_without_values() -> None:
    content = b'{"id": "secret-value", "user_id": "1"}'
    with pytest.raises(UnexpectedResponse) as raised:
        Call(GET, CONFIG).result(httpx.Response(200, content=content, headers={"Request-Id": "r"}))
    assert "id: uuid_parsing" in str(raised.value)
    assert "secret-value" not in str(raised.value)
    assert raised.value.request_id == "r"
    with pytest.raises(UnexpectedResponse, match="json_invalid"):
        Call(GET, CONFIG).result(httpx.Response(200, content=b"<html>"))


def test_page_of_another_server_is_no_deletion() -> None:
    with pytest.raises(UnexpectedResponse):
        Call(DELETE, CONFIG).result(httpx.Response(200, content=b"<html>"))
    Call(DELETE, CONFIG).result(httpx.Response(204))
