"""Everything that this library raises. The base class is `NotifyError`.

A response that is not a success raises a subclass of `ApiError`, chosen by the problem's `code`, whose meaning never
changes. `CLASSES` lists the codes.
"""

from collections.abc import Sequence

from pydantic import ValidationError
from typing_extensions import override

from notify_client.models import DeliverySummary, FieldProblem, Notification, Problem


class NotifyError(Exception):
    """The base class of all errors of this library."""


class ConfigurationError(NotifyError):
    """The client cannot be created, because an argument or environment variable is missing or invalid."""


class ConnectionFailed(NotifyError):
    """The gateway could not be reached, or the connection broke before the whole response arrived."""

    def __init__(self, message: str, maybe_executed: bool = True) -> None:
        super().__init__(message)
        self.maybe_executed = maybe_executed
        """False if the request has certainly not reached the gateway."""


class TimedOut(ConnectionFailed):
    """The gateway did not respond within the client's `timeout`."""


class WaitTimedOut(NotifyError):
    """`wait` ended before the notification was final. `notification` is its last known state."""

    def __init__(self, notification: Notification) -> None:
        super().__init__(notification)
        self.notification = notification

    @override
    def __str__(self) -> str:
        return f"notification {self.notification.id} is still {self.notification.status}"


class InvalidWebhook(NotifyError):
    """A webhook is not signed with any of the secrets, is too old, has been changed, or cannot be understood."""


class ApiError(NotifyError):
    """The gateway, or a proxy in front of it, responded with an error."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.problem = problem
        self.retry_after = retry_after
        """The seconds to wait before another attempt, if the response says so."""

    @property
    def code(self) -> str:
        """The kind of error, such as `not_found`. Other responses than problems have a code like `http_502`."""
        return self.problem.code

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def detail(self) -> str:
        """An explanation for people."""
        return self.problem.detail

    @property
    def request_id(self) -> str | None:
        """The id under which the gateway's logs and traces mention the request."""
        return self.problem.request_id

    @property
    def errors(self) -> Sequence[FieldProblem]:
        """The fields that are not valid."""
        return self.problem.errors or ()

    @override
    def __str__(self) -> str:
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.detail} ({self.status} {self.code}{request})"


class AuthenticationFailed(ApiError):
    """The API key is missing, malformed, unknown, revoked or expired."""


class PermissionDenied(ApiError):
    """The API key lacks a scope."""


class NotFound(ApiError):
    """There is no such resource, or it belongs to another tenant."""


class Conflict(ApiError):
    """The state of the resource does not allow the request."""


class NotCancellable(Conflict):
    """Some deliveries had already started or finished; the others were cancelled."""

    @property
    def deliveries(self) -> Sequence[DeliverySummary]:
        """The deliveries of the notification, including those that were cancelled."""
        return self.problem.deliveries or ()


class InvalidRequest(ApiError):
    """The request is not valid, so that sending it again does not help. `errors` names the fields."""


class IdempotencyKeyReused(InvalidRequest):
    """The idempotency key belongs to an earlier request with a different body."""


class RateLimited(ApiError):
    """There are too many requests. `retry_after` says when to try again."""


class Unavailable(ApiError):
    """The gateway, or what it depends on, is unavailable. The request may have been executed nevertheless."""


class QueryTimedOut(ApiError):
    """The query took too long. Narrow its filters."""


class ServerError(ApiError):
    """The gateway failed; its log has the details, with the same request id."""


class UnexpectedResponse(ApiError):
    """The response is not one of this API, or not one that this version of the library understands."""


CLASSES: dict[str, type[ApiError]] = {
    "unauthenticated": AuthenticationFailed,
    "forbidden": PermissionDenied,
    "not_found": NotFound,
    "conflict": Conflict,
    "not_retryable": Conflict,
    "not_cancellable": NotCancellable,
    "bad_request": InvalidRequest,
    "method_not_allowed": InvalidRequest,
    "request_timed_out": Unavailable,
    "body_too_large": InvalidRequest,
    "headers_too_large": InvalidRequest,
    "foreign_host": InvalidRequest,
    "invalid_request": InvalidRequest,
    "idempotency_key_reused": IdempotencyKeyReused,
    "rate_limited": RateLimited,
    "too_many_in_progress": RateLimited,
    "too_many_retry_jobs": RateLimited,
    "unavailable": Unavailable,
    "overloaded": Unavailable,
    "query_timed_out": QueryTimedOut,
    "internal_error": ServerError,
}
STATUSES: dict[int, type[ApiError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""The classes for codes of newer gateways, and for responses of proxies, which have no code."""
FIRST_ERROR, FIRST_SERVER_ERROR = 400, 500


def api_error(status: int, content: bytes, retry_after: float | None) -> ApiError:
    """Return the error for a response that is not a success."""
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        problem = Problem(
            title="", status=status, detail=f"The response has the status {status}.", code=f"http_{status}"
        )
    if status < FIRST_ERROR:
        fallback: type[ApiError] = UnexpectedResponse
    else:
        fallback = ServerError if status >= FIRST_SERVER_ERROR else InvalidRequest
    kind = CLASSES.get(problem.code) or STATUSES.get(status, fallback)
    return kind(problem.model_copy(update={"status": status}), retry_after)


def unexpected(status: int, request_id: str | None, error: ValidationError) -> UnexpectedResponse:
    """Return the error for a success whose content has another form. It names fields without their values."""
    fields = "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['type']}"
        for each in error.errors(include_input=False, include_url=False, include_context=False)[:5]
    )
    return UnexpectedResponse(
        Problem(
            title="", status=status, detail=f"Unexpected response: {fields}", code="unexpected", request_id=request_id
        )
    )
