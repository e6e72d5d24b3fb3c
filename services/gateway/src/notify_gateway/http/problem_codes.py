"""The codes of problems. Clients rely on them, so they are never renamed; `/docs/problems` describes each of them."""

from enum import StrEnum
from http import HTTPStatus


class ProblemCode(StrEnum):
    """What went wrong."""

    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMED_OUT = "request_timed_out"
    CONFLICT = "conflict"
    NOT_CANCELLABLE = "not_cancellable"
    NOT_RETRYABLE = "not_retryable"
    BODY_TOO_LARGE = "body_too_large"
    FOREIGN_HOST = "foreign_host"
    INVALID_REQUEST = "invalid_request"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_IN_PROGRESS = "too_many_in_progress"
    TOO_MANY_RETRY_JOBS = "too_many_retry_jobs"
    HEADERS_TOO_LARGE = "headers_too_large"
    INTERNAL_ERROR = "internal_error"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    QUERY_TIMED_OUT = "query_timed_out"


OF_STATUS = {
    400: ProblemCode.BAD_REQUEST,
    401: ProblemCode.UNAUTHENTICATED,
    403: ProblemCode.FORBIDDEN,
    404: ProblemCode.NOT_FOUND,
    405: ProblemCode.METHOD_NOT_ALLOWED,
    408: ProblemCode.REQUEST_TIMED_OUT,
    409: ProblemCode.CONFLICT,
    413: ProblemCode.BODY_TOO_LARGE,
    421: ProblemCode.FOREIGN_HOST,
    422: ProblemCode.INVALID_REQUEST,
    429: ProblemCode.RATE_LIMITED,
    431: ProblemCode.HEADERS_TOO_LARGE,
    500: ProblemCode.INTERNAL_ERROR,
    503: ProblemCode.UNAVAILABLE,
    504: ProblemCode.QUERY_TIMED_OUT,
}
"""The code of a problem that has none of its own."""

STATUS = {code: status for status, code in OF_STATUS.items()} | {
    ProblemCode.NOT_CANCELLABLE: 409,
    ProblemCode.NOT_RETRYABLE: 409,
    ProblemCode.IDEMPOTENCY_KEY_REUSED: 422,
    ProblemCode.TOO_MANY_IN_PROGRESS: 429,
    ProblemCode.TOO_MANY_RETRY_JOBS: 429,
    ProblemCode.OVERLOADED: 503,
}
"""The status of the response with each code."""


def code_of(status: int) -> ProblemCode:
    """Return the code of a problem that has none of its own."""
    others = ProblemCode.BAD_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else ProblemCode.INTERNAL_ERROR
    return OF_STATUS.get(status, others)


DESCRIPTIONS = {
    ProblemCode.BAD_REQUEST: "The request is not valid HTTP, or not valid JSON. Sending it again does not help.",
    ProblemCode.UNAUTHENTICATED: "The API key is missing, malformed, unknown, revoked or expired.",
    ProblemCode.FORBIDDEN: "The API key lacks a scope, or another site sent the request from a browser.",
    ProblemCode.NOT_FOUND: "There is no such resource, or it belongs to another tenant.",
    ProblemCode.METHOD_NOT_ALLOWED: "The resource does not support this method. `Allow` lists those that it supports.",
    ProblemCode.REQUEST_TIMED_OUT: "The body of the request did not arrive in time.",
    ProblemCode.CONFLICT: "The state of the resource does not allow the request.",
    ProblemCode.NOT_CANCELLABLE: "Some deliveries had already started or finished. `deliveries` lists all of them.",
    ProblemCode.NOT_RETRYABLE: "Only failed deliveries can be retried, and only 999 times.",
    ProblemCode.BODY_TOO_LARGE: "The body is too long.",
    ProblemCode.FOREIGN_HOST: "The gateway does not serve the host in the URL. See the setting ALLOWED_HOSTS.",
    ProblemCode.INVALID_REQUEST: "`errors` lists the fields that are not valid.",
    ProblemCode.IDEMPOTENCY_KEY_REUSED: "The idempotency key belongs to an earlier request with a different body.",
    ProblemCode.RATE_LIMITED: "Too many requests. Wait for the seconds in `Retry-After`.",
    ProblemCode.TOO_MANY_IN_PROGRESS: "Too many reads and writes of this tenant are in progress. Try again later.",
    ProblemCode.TOO_MANY_RETRY_JOBS: "The tenant has too many unfinished retry jobs. Try again when one has finished.",
    ProblemCode.HEADERS_TOO_LARGE: "The headers are too long.",
    ProblemCode.INTERNAL_ERROR: "This is a bug. The gateway's log has the details, with the same request id.",
    ProblemCode.UNAVAILABLE: "The gateway or its database is unavailable for the moment. Try again.",
    ProblemCode.OVERLOADED: "Too many requests wait for the database. Wait for the seconds in `Retry-After`.",
    ProblemCode.QUERY_TIMED_OUT: "The query took too long. Narrow its filters.",
}
