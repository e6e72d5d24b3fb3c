"""Errors as problem details (RFC 9457) that name the field."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from notify_common.errors import Overloaded
from notify_database.errors import DatabaseUnavailable, DataRejected
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match

from notify_gateway.errors import CancellationRejected, IdempotencyKeyReused, RequestRejected, TooManySubscribers

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 1  # seconds
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    location: str
    """`body`, `query` or `path`."""
    field: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details. `errors` is set if single fields are wrong."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None


def documented(*statuses: int, model: type[Problem] = Problem) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of a route that can answer with these statuses."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


COMMON_PROBLEMS = documented(401, 403, 408, 413, 429, 431, 503)
"""What every authenticated route can answer."""


def install(app: FastAPI, *models: type[Problem]) -> None:
    """Answer every error of `app` with problem details; document `Problem` and `models` in its OpenAPI document."""
    _document_problems(app, [Problem, *models])

    async def respond(request: Request, error: Exception) -> JSONResponse:
        response = response_to(error)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # Each route knows only its own methods; RFC 9110 requires those of the resource.
            response.headers["Allow"] = ", ".join(_allowed_methods(request))
        return response

    for error_type in (*RESPONSES, Exception):
        app.add_exception_handler(error_type, respond)


def response_to(error: Exception) -> JSONResponse:
    """Return the response to `error`; an error without one is a bug and becomes a 500."""
    for error_type in type(error).__mro__:
        if error_type in RESPONSES:
            return RESPONSES[error_type](error)
    return _response(HTTPStatus.INTERNAL_SERVER_ERROR, "An unexpected error; the log of the gateway has more.")


def problem_response(status: int, detail: str, *, retry_after: int | None = None) -> JSONResponse:
    """Return a problem for code that runs outside the application."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return _response(HTTPStatus(status), detail, headers=headers)


def _invalid_request(error: RequestValidationError) -> JSONResponse:
    errors = [_field_problem(problem) for problem in error.errors()]
    detail = "; ".join(f"{problem.field}: {problem.detail}" for problem in errors)
    return _response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _request_rejected(error: RequestRejected) -> JSONResponse:
    field, detail = str(error).split(": ", 1)
    errors = [FieldProblem(location="body", field=field, detail=detail)]
    return _response(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), errors=errors)


def _cancellation_rejected(error: CancellationRejected) -> JSONResponse:
    detail = "Some deliveries are under way or final already; those that were not are cancelled."
    deliveries = [delivery.model_dump(mode="json") for delivery in error.deliveries]
    return _response(HTTPStatus.CONFLICT, detail, deliveries=deliveries)


def _unavailable(detail: str) -> JSONResponse:
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after=RETRY_AFTER)


RESPONSES: dict[type, Callable[[Any], JSONResponse]] = {
    RequestValidationError: _invalid_request,
    HTTPException: lambda error: _response(HTTPStatus(error.status_code), error.detail, headers=error.headers),
    CancellationRejected: _cancellation_rejected,
    RequestRejected: _request_rejected,
    IdempotencyKeyReused: lambda _: _response(
        HTTPStatus.UNPROCESSABLE_ENTITY, "Idempotency-Key: was used with another body"
    ),
    DataRejected: lambda _: _response(
        HTTPStatus.UNPROCESSABLE_ENTITY, "The database can not store a value of this request."
    ),
    Overloaded: lambda _: _unavailable("Too many requests are waiting for the database."),
    TooManySubscribers: lambda _: _unavailable(
        "Too many listen to the events of this gateway, or it is about to stop."
    ),
    DatabaseUnavailable: lambda _: _unavailable("The database is not available."),
}


def _allowed_methods(request: Request) -> list[str]:
    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return list(filter(is_allowed, METHODS))


def _document_problems(app: FastAPI, models: Sequence[type[Problem]]) -> None:
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
            )
            build()["components"]["schemas"].update(definitions["$defs"])
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def _field_problem(error: dict[str, Any]) -> FieldProblem:
    location, *path = error["loc"]
    # A rule over several fields names the field itself.
    field = error.get("ctx", {}).get("field") or ".".join(map(str, path)) or str(location)
    if error["type"] == "json_invalid":
        return FieldProblem(location="body", field="body", detail=f"not valid JSON: {error['ctx']['error']}")
    if location == "path":
        field = str(path[0])  # the rest names the type that was tried
    return FieldProblem(location=str(location), field=field, detail=error["msg"])


def _response(
    status: HTTPStatus,
    detail: str,
    *,
    errors: Sequence[FieldProblem] | None = None,
    headers: Any = None,  # noqa: ANN401 - Starlette's own type for headers
    **extensions: object,
) -> JSONResponse:
    problem = Problem(title=status.phrase, status=status, detail=detail, errors=list(errors) if errors else None)
    content = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse({**content, **extensions}, status, headers, MEDIA_TYPE)
