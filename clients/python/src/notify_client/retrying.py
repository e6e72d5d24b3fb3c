"""Decide whether a failed request is sent again, and when. Nothing here does any I/O or looks at a clock."""

import logging
import random
from collections.abc import Callable
from http import HTTPStatus
from typing import Generic, TypeVar

import httpx
from pydantic import ValidationError

from notify_client.config import Config
from notify_client.errors import (
    ApiError,
    AuthenticationFailed,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    NotifyError,
    TimedOut,
    UnexpectedResponse,
    api_error,
    unexpected,
)
from notify_client.requests import Request

log = logging.getLogger("notify_client")

Result = TypeVar("Result")
Jitter = Callable[[float, float], float]

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds: the range of the exponential backoff
LONGEST_RETRY_AFTER = 60.0  # seconds; the caller decides about longer waits
NOT_EXECUTED = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""The gateway has certainly not executed a request that it answers with one of these."""
MAYBE_EXECUTED = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
OF_STRANGERS = (InvalidRequest, NotFound, UnexpectedResponse)
"""Other errors without the form of the gateway's come from a proxy in front of it."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def backoff(retries: int, retry_after: float | None = None, jitter: Jitter = random.uniform) -> float:
    """Return the seconds to wait after `retries` earlier retries.

    The full jitter spreads the retries of many clients, also of those that have been asked to wait for the same time.
    """
    return (retry_after or 0.0) + jitter(0.0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(retries, 10)))


def is_retryable(error: NotifyError, *, idempotent: bool) -> bool:
    """Return whether the request may be sent again after `error`.

    A request that is not idempotent is sent again only if the gateway has certainly not executed it.
    """
    if isinstance(error, ConnectionFailed):
        return idempotent or not error.maybe_executed
    if not isinstance(error, ApiError) or (error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
        return False
    if error.code == "query_timed_out":  # the same query would take as long again
        return False
    return error.status in NOT_EXECUTED or (idempotent and error.status in MAYBE_EXECUTED)


def connection_error(error: httpx.RequestError) -> ConnectionFailed:
    """Return our error for one of httpx."""
    kind = TimedOut if isinstance(error, httpx.TimeoutException) else ConnectionFailed
    return kind(str(error) or type(error).__name__, not isinstance(error, UNSENT))


def response_error(response: httpx.Response, config: Config) -> ApiError:
    """Return the error that a response stands for; its content has been read."""
    error = api_error(response.status_code, response.content, retry_after(response.headers))
    if isinstance(error, AuthenticationFailed) and config.api_key is None:
        detail = f"{error.detail} The client has no API key: pass api_key, or set NOTIFY_API_KEY."
        return AuthenticationFailed(error.problem.model_copy(update={"detail": detail}))
    return doubting_address(error, config)


def doubting_address(error: ApiError, config: Config) -> ApiError:
    """Return the error, which asks for the URL if another server than a gateway seems to have responded."""
    has_other_form = error.request_id is None and error.code.startswith(("http_", "unexpected"))
    from_stranger = has_other_form and (isinstance(error, OF_STRANGERS) or error.status == HTTPStatus.NOT_IMPLEMENTED)
    if not from_stranger and not (error.code == "not_found" and config.base_url.endswith("/v1")):
        return error
    detail = f"{error.detail.removesuffix('.')}. Is {config.base_url} the address of a gateway, without /v1?"
    return type(error)(error.problem.model_copy(update={"detail": detail}), error.retry_after)


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds in `Retry-After`. A date, which the gateway never sends, is ignored."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() else None


class Call(Generic[Result]):
    """One call of a method: a request, and what has become of its attempts."""

    def __init__(self, request: Request[Result], config: Config) -> None:
        self.http_request = request.to_httpx(config)
        """The same for all attempts, with the same idempotency key."""
        self._request = request
        self._config = config
        self._retries = 0
        self._maybe_executed = False

    def result(self, response: httpx.Response) -> Result:
        """Return the result that the response contains; raise `ApiError` if it contains none."""
        # An earlier attempt, whose response was lost, may have deleted the resource.
        deleted = response.status_code == HTTPStatus.NOT_FOUND and self._request.method == "DELETE"
        if not response.is_success and not (deleted and self._maybe_executed):
            raise response_error(response, self._config)
        try:
            return self._request.read(b"" if deleted else response.content)
        except ValidationError as error:
            failure = unexpected(response.status_code, response.headers.get("Request-Id"), error)
            raise doubting_address(failure, self._config) from None

    def wait_after(self, error: httpx.RequestError | NotifyError) -> float:
        """Return the seconds to wait before the next attempt; raise the error if there is to be none."""
        failure = error if isinstance(error, NotifyError) else connection_error(error)
        retryable = is_retryable(failure, idempotent=self._request.idempotent)
        if not retryable or self._retries >= self._config.max_retries:
            if failure is error:
                raise failure
            raise failure from error
        if isinstance(failure, ConnectionFailed):
            self._maybe_executed |= failure.maybe_executed
        elif isinstance(failure, ApiError):
            self._maybe_executed |= failure.status in MAYBE_EXECUTED
        wait = backoff(self._retries, getattr(failure, "retry_after", None))
        self._retries += 1
        log.debug("retry %d of a %s in %.1f s: %s", self._retries, self._request.method, wait, type(failure).__name__)
        return wait
