"""Error responses: problem details (RFC 9457), which name any invalid fields."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from notify_common.errors import Overloaded
from notify_database.errors import DatabaseUnavailable, DataRejected
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from notify_gateway.errors import (
    CancellationRejected,
    IdempotencyKeyReused,
    ReadTimedOut,
    RequestRejected,
    RetryRejected,
    TooManyInProgress,
    TooManyRetryJobs,
    TooManySubscribers,
)
from notify_gateway.http.fields import Omissible
from notify_gateway.http.problem_codes import DESCRIPTIONS, STATUS, ProblemCode, code_of
from notify_gateway.http.request_id import REQUEST_ID

MEDIA_TYPE = "application/problem+json"
PAGE = "/docs/problems"
LEGACY_PREFIX = "/api/"
"""The URLs whose problems keep the form that they had before there were codes."""
RETRY_AFTER = 1  # seconds
RETRY_SOON = {"Retry-After": str(RETRY_AFTER)}
MAX_ERRORS = 20  # invalid fields that one response lists
MAX_FIELD = 100  # characters of a field's name that a response repeats
NO_OBJECT = {"model_type", "model_attributes_type"}  # pydantic's errors for a body that is no JSON object
Result = TypeVar("Result")


class FieldProblem(BaseModel):
    """An invalid field and why it is invalid."""

    location: str = Field(description="`body`, `query`, `path` or `header`.")
    field: str
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457), as the URLs under `/api` return them."""

    type: str
    title: str
    status: int
    detail: str
    errors: Omissible[list[FieldProblem]] = Field(None, description="The fields that are not valid, at most 20.")


class ProblemDetails(Problem):
    """Problem details (RFC 9457)."""

    type: str = Field(description="The URL of a description of the `code`.")
    code: ProblemCode
    request_id: str = Field(description="The same id as in the header `Request-Id`.")


class ProblemResponse(Response):
    """A response with problem details. It is rendered when it is sent, because it contains the id of the request."""

    def __init__(
        self, status: int, code: ProblemCode, members: Mapping[str, object], headers: Mapping[str, str] | None
    ) -> None:
        super().__init__(None, status)
        self._code = code
        self._members = members
        self.added_headers = dict(headers or {})

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        legacy = scope["path"].startswith(LEGACY_PREFIX)
        content = {
            "type": "about:blank" if legacy else f"{PAGE}#{self._code}",
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            **self._members,
        }
        if not legacy:
            content |= {"code": self._code, "request_id": scope.get(REQUEST_ID, "")}
        await JSONResponse(content, self.status_code, self.added_headers, MEDIA_TYPE)(scope, receive, send)


def documented(*errors: int | ProblemCode, model: type[Problem] = ProblemDetails) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of a route that can fail with these codes, or the usual ones of these statuses."""
    by_status: dict[int, list[ProblemCode]] = {}
    for error in errors:
        code = error if isinstance(error, ProblemCode) else code_of(error)
        by_status.setdefault(STATUS[code], []).append(code)
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {
        status: {
            "description": "\n\n".join(f"`{code}`: {DESCRIPTIONS[code]}" for code in codes)
            if issubclass(model, ProblemDetails)
            else HTTPStatus(status).phrase,
            "content": content,
        }
        for status, codes in by_status.items()
    }


COMMON_PROBLEMS = documented(400, 401, 403, 408, 413, 421, 429, ProblemCode.TOO_MANY_IN_PROGRESS, 431, 503)
"""The errors that every authenticated route can return."""
LEGACY_PROBLEMS = documented(400, 401, 403, 408, 413, 421, 429, 431, 503, model=Problem)
"""The same for the routes under `/api`."""


def found(result: Result | None, detail: str) -> Result:
    """Return `result`; if it is None, raise 404 with this `detail`."""
    if result is None:
        raise HTTPException(404, detail)
    return result


def install(app: FastAPI, *models: type[BaseModel]) -> None:
    """Make `app` return problem details for every error, and add `Problem` and `models` to its OpenAPI document."""
    _document_problems(app, [Problem, ProblemDetails, *models])

    async def respond(request: Request, error: Exception) -> ProblemResponse:
        response = response_to(error)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _allowed_methods(request)):
            # RFC 9110 requires `Allow` to list all methods of the resource, but each route knows only its own.
            response.added_headers["Allow"] = ", ".join(methods)
        return response

    for error_type in (*RESPONSES, Exception):
        app.add_exception_handler(error_type, respond)


def response_to(error: Exception) -> ProblemResponse:
    """Return the response to `error`; an error that is not in `RESPONSES` is a bug and becomes a 500."""
    for error_type in type(error).__mro__:
        if error_type in RESPONSES:
            return RESPONSES[error_type](error)
    return problem_response(500, "An unexpected error occurred; see the gateway's log.")


def problem_response(
    status: int,
    detail: str,
    code: ProblemCode | None = None,
    *,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
    **extensions: object,
) -> ProblemResponse:
    """Build a response with problem details; a 503 asks the client to retry after `RETRY_AFTER`."""
    members: dict[str, object] = {"detail": detail, **extensions}
    if errors is not None:
        members["errors"] = [error.model_dump(mode="json") for error in errors]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": str(RETRY_AFTER)}
    return ProblemResponse(status, code or code_of(status), members, headers)


def _invalid_request(error: RequestValidationError) -> ProblemResponse:
    errors = [_field_problem(problem) for problem in error.errors()[:MAX_ERRORS]]
    detail = "; ".join(f"{problem.field}: {problem.detail}" for problem in errors)
    if (more := len(error.errors()) - MAX_ERRORS) > 0:
        detail += f"; and {more} more"
    return problem_response(422, detail, errors=errors)


def _request_rejected(error: RequestRejected) -> ProblemResponse:
    field, detail = str(error).split(": ", 1)
    return problem_response(422, str(error), errors=[FieldProblem(location="body", field=field, detail=detail)])


def _cancellation_rejected(error: CancellationRejected) -> ProblemResponse:
    return problem_response(409, str(error), ProblemCode.NOT_CANCELLABLE, deliveries=error.deliveries)


RESPONSES: dict[type, Callable[[Any], ProblemResponse]] = {
    RequestValidationError: _invalid_request,
    HTTPException: lambda error: problem_response(error.status_code, error.detail, headers=error.headers),
    CancellationRejected: _cancellation_rejected,
    RequestRejected: _request_rejected,
    IdempotencyKeyReused: lambda _: problem_response(
        422, "Idempotency-Key: was already used with a different body", ProblemCode.IDEMPOTENCY_KEY_REUSED
    ),
    DataRejected: lambda _: problem_response(422, "The database cannot store a value in this request."),
    Overloaded: lambda _: problem_response(
        503, "Too many requests are waiting for the database.", ProblemCode.OVERLOADED
    ),
    RetryRejected: lambda error: problem_response(409, str(error), ProblemCode.NOT_RETRYABLE),
    TooManyRetryJobs: lambda error: problem_response(
        429, str(error), ProblemCode.TOO_MANY_RETRY_JOBS, headers=RETRY_SOON
    ),
    TooManySubscribers: lambda _: problem_response(
        503, "This gateway has too many event subscribers, or is about to stop."
    ),
    TooManyInProgress: lambda _: problem_response(
        429,
        "Too many reads and writes of this tenant are in progress.",
        ProblemCode.TOO_MANY_IN_PROGRESS,
        headers=RETRY_SOON,
    ),
    ReadTimedOut: lambda _: problem_response(
        504, "The query took too long: narrow the filters, for example to one user or to a shorter time."
    ),
    DatabaseUnavailable: lambda _: problem_response(503, "The database is not available."),
}


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes with the path, or nothing if it is that of a static file."""
    # Only these are compared again for each method, because that takes long if the path is long.
    with_path = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in with_path)

    return list(filter(is_allowed, ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")))


def _document_problems(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
            )
            for schema in definitions["$defs"].values():
                for member in schema.get("properties", {}).values():
                    if member.get("default", ...) is None:
                        del member["default"]  # such a member is left out and never null
            build()["components"]["schemas"].update(definitions["$defs"])
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation recommends


def _field_problem(error: dict[str, Any]) -> FieldProblem:
    location, *path = error["loc"]
    # An error in a rule that involves several fields names the field at fault.
    field = error.get("ctx", {}).get("field") or ".".join(map(str, path)) or str(location)
    if error["type"] == "json_invalid":
        return FieldProblem(location="body", field="body", detail=f"not valid JSON: {error['ctx']['error']}")
    if error["loc"] == ("body",) and error["type"] in NO_OBJECT:
        # Only a body that is declared as JSON is parsed, so that this one reached the model as bytes.
        if isinstance(error.get("input"), bytes):
            return FieldProblem(location="header", field="content-type", detail="must be application/json")
        return FieldProblem(location="body", field="body", detail="must be a JSON object")
    if location == "path":
        field = str(path[0])  # what follows is the name of the type that pydantic tried
    if len(field) > MAX_FIELD:
        field = f"{field[:MAX_FIELD]}…"
    return FieldProblem(location=str(location), field=field, detail=error["msg"])
