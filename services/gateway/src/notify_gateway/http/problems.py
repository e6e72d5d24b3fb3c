"""Error responses: problem details (RFC 9457), which name any invalid fields."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from notify_common.errors import Overloaded
from notify_database.errors import DatabaseUnavailable, DataRejected
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match

from notify_gateway.errors import (
    CancellationRejected,
    IdempotencyKeyReused,
    ReadTimedOut,
    RequestRejected,
    TooManyInProgress,
    TooManySubscribers,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 1  # seconds
MAX_ERRORS = 20  # invalid fields that one response lists
MAX_FIELD = 100  # characters of a field's name that a response repeats
Result = TypeVar("Result")


class FieldProblem(BaseModel):
    """An invalid field and why it is invalid."""

    location: str
    """`body`, `query` or `path`."""
    field: str
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457). `errors` lists the invalid fields, if any."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None


def documented(*statuses: int, model: type[Problem] = Problem) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of a route that can fail with these statuses."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


COMMON_PROBLEMS = documented(400, 401, 403, 408, 413, 421, 429, 431, 503)
"""The errors that every authenticated route can return."""


def found(result: Result | None, detail: str) -> Result:
    """Return `result`; if it is None, raise 404 with this `detail`."""
    if result is None:
        raise HTTPException(404, detail)
    return result


def install(app: FastAPI, *models: type[Problem]) -> None:
    """Make `app` return problem details for every error, and add `Problem` and `models` to its OpenAPI document."""
    _document_problems(app, [Problem, *models])

    async def respond(request: Request, error: Exception) -> JSONResponse:
        response = response_to(error)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # RFC 9110 requires `Allow` to list all methods of the resource, but each route knows only its own.
            response.headers["Allow"] = ", ".join(_allowed_methods(request))
        return response

    for error_type in (*RESPONSES, Exception):
        app.add_exception_handler(error_type, respond)


def response_to(error: Exception) -> JSONResponse:
    """Return the response to `error`; an error that is not in `RESPONSES` is a bug and becomes a 500."""
    for error_type in type(error).__mro__:
        if error_type in RESPONSES:
            return RESPONSES[error_type](error)
    return problem_response(500, "An unexpected error occurred; see the gateway's log.")


def problem_response(
    status: int,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    headers: Any = None,  # noqa: ANN401 - Starlette's own type for headers
    **extensions: object,
) -> JSONResponse:
    """Build a response with problem details; a 503 asks the client to retry after `RETRY_AFTER`."""
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": str(RETRY_AFTER)}
    content = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse({**content, **extensions}, status, headers, MEDIA_TYPE)


def _invalid_request(error: RequestValidationError) -> JSONResponse:
    errors = [_field_problem(problem) for problem in error.errors()[:MAX_ERRORS]]
    detail = "; ".join(f"{problem.field}: {problem.detail}" for problem in errors)
    if (more := len(error.errors()) - MAX_ERRORS) > 0:
        detail += f"; and {more} more"
    return problem_response(422, detail, errors=errors)


def _request_rejected(error: RequestRejected) -> JSONResponse:
    field, detail = str(error).split(": ", 1)
    return problem_response(422, str(error), errors=[FieldProblem(location="body", field=field, detail=detail)])


def _cancellation_rejected(error: CancellationRejected) -> JSONResponse:
    detail = "Some deliveries had already started or finished; the others were cancelled."
    deliveries = [delivery.model_dump(mode="json") for delivery in error.deliveries]
    return problem_response(409, detail, deliveries=deliveries)


RESPONSES: dict[type, Callable[[Any], JSONResponse]] = {
    RequestValidationError: _invalid_request,
    HTTPException: lambda error: problem_response(error.status_code, error.detail, headers=error.headers),
    CancellationRejected: _cancellation_rejected,
    RequestRejected: _request_rejected,
    IdempotencyKeyReused: lambda _: problem_response(422, "Idempotency-Key: was already used with a different body"),
    DataRejected: lambda _: problem_response(422, "The database cannot store a value in this request."),
    Overloaded: lambda _: problem_response(503, "Too many requests are waiting for the database."),
    TooManySubscribers: lambda _: problem_response(
        503, "This gateway has too many event subscribers, or is about to stop."
    ),
    TooManyInProgress: lambda _: problem_response(
        429, "Too many reads and writes of this tenant are in progress.", headers={"Retry-After": str(RETRY_AFTER)}
    ),
    ReadTimedOut: lambda _: problem_response(
        504, "The query took too long: narrow the filters, for example to one user or to a shorter time."
    ),
    DatabaseUnavailable: lambda _: problem_response(503, "The database is not available."),
}


def _allowed_methods(request: Request) -> list[str]:
    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return list(filter(is_allowed, ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")))


def _document_problems(app: FastAPI, models: Sequence[type[Problem]]) -> None:
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
            )
            build()["components"]["schemas"].update(definitions["$defs"])
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation recommends


def _field_problem(error: dict[str, Any]) -> FieldProblem:
    location, *path = error["loc"]
    # An error in a rule that involves several fields names the field at fault.
    field = error.get("ctx", {}).get("field") or ".".join(map(str, path)) or str(location)
    if error["type"] == "json_invalid":
        return FieldProblem(location="body", field="body", detail=f"not valid JSON: {error['ctx']['error']}")
    if location == "path":
        field = str(path[0])  # what follows is the name of the type that pydantic tried
    if len(field) > MAX_FIELD:
        field = f"{field[:MAX_FIELD]}…"
    return FieldProblem(location=str(location), field=field, detail=error["msg"])
