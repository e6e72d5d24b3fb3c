"""Errors as problem details (RFC 9457) that name the field."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from notify_common.group_commit import WaitingRoomFull
from notify_database.engine import DatabaseAway, StatementRefused
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match

from notify_gateway.idempotency import KeyReused
from notify_gateway.intake import NotNow
from notify_gateway.live_events import TooManyListeners
from notify_gateway.schemas import DeliverySummary

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
    """RFC 9457 problem details.

    `errors` is there where single fields are wrong, `deliveries` where they are why something can not be done.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
    deliveries: list[DeliverySummary] | None = None


class NotCancelled(Exception):
    """Some deliveries of the notification are under way or final."""

    def __init__(self, deliveries: Sequence[DeliverySummary]) -> None:
        super().__init__()
        self.deliveries = deliveries


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that can answer with these problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Let `app` answer every error with problem details."""
    _describe_problems(app)

    async def answer(request: Request, error: Exception) -> JSONResponse:
        answered = answer_to(error)
        if answered.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # Each route knows its own methods only; RFC 9110 wants those of the resource.
            answered.headers["Allow"] = ", ".join(_methods(request))
        return answered

    for kind in (*ANSWERS, Exception):
        app.add_exception_handler(kind, answer)


def answer_to(error: Exception) -> JSONResponse:
    """The problem that `error` is to the client; one that is not expected is a bug of ours."""
    for kind in type(error).__mro__:
        if kind in ANSWERS:
            return ANSWERS[kind](error)
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "An unexpected error; the log of the gateway has more.")


def _invalid_request(error: RequestValidationError) -> JSONResponse:
    errors = [_field_problem(problem) for problem in error.errors()]
    detail = "; ".join(f"{problem.field}: {problem.detail}" for problem in errors)
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _not_now(error: NotNow) -> JSONResponse:
    field, detail = str(error).split(": ", 1)
    errors = [FieldProblem(location="body", field=field, detail=detail)]
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), errors=errors)


def _not_cancelled(error: NotCancelled) -> JSONResponse:
    detail = "Some deliveries are under way or final already; those that were not are cancelled."
    return _answer(HTTPStatus.CONFLICT, detail, deliveries=error.deliveries)


ANSWERS: dict[type, Callable[[Any], JSONResponse]] = {
    RequestValidationError: _invalid_request,
    HTTPException: lambda error: _answer(HTTPStatus(error.status_code), error.detail, headers=error.headers),
    NotCancelled: _not_cancelled,
    NotNow: _not_now,
    KeyReused: lambda _: _answer(HTTPStatus.UNPROCESSABLE_ENTITY, "Idempotency-Key: was used with another body"),
    StatementRefused: lambda _: _answer(
        HTTPStatus.UNPROCESSABLE_ENTITY, "The database can not store a value of this request."
    ),
    WaitingRoomFull: lambda _: _try_later("Too many requests are waiting for the database."),
    TooManyListeners: lambda _: _try_later("Too many listen to the events of this gateway, or it is about to stop."),
    DatabaseAway: lambda _: _try_later("The database is not available."),
}


def _methods(request: Request) -> list[str]:
    def is_served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return list(filter(is_served, METHODS))


def _describe_problems(app: FastAPI) -> None:
    """Put `Problem` into the OpenAPI document, where `documented` points to."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(Problem, "serialization")], ref_template="#/components/schemas/{model}"
            )
            build()["components"]["schemas"].update(definitions["$defs"])
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def _field_problem(error: dict[str, Any]) -> FieldProblem:
    location, *path = error["loc"]
    # A rule over several fields says itself which one it means.
    field = error.get("ctx", {}).get("field") or ".".join(map(str, path)) or str(location)
    if error["type"] == "json_invalid":
        return FieldProblem(location="body", field="body", detail=f"not valid JSON: {error['ctx']['error']}")
    if location == "path":
        field = str(path[0])  # what follows tells which of the allowed types was tried
    return FieldProblem(location=str(location), field=field, detail=error["msg"])


def answer_plainly(status: int, detail: str, *, retry_after: int | None = None) -> JSONResponse:
    """A problem, for where the application is not asked."""
    return _answer(
        HTTPStatus(status), detail, headers=None if retry_after is None else {"Retry-After": str(retry_after)}
    )


def _try_later(detail: str) -> JSONResponse:
    return _answer(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER)})


def _answer(
    status: HTTPStatus,
    detail: str,
    *,
    errors: Sequence[FieldProblem] | None = None,
    deliveries: Sequence[DeliverySummary] | None = None,
    headers: Any = None,  # noqa: ANN401 - Starlette's own type for headers
) -> JSONResponse:
    problem = Problem(
        title=status.phrase,
        status=status,
        detail=detail,
        errors=list(errors) if errors else None,
        deliveries=list(deliveries) if deliveries else None,
    )
    told = {name: value for name, value in problem.model_dump(mode="json").items() if value is not None}
    return JSONResponse(told, status, headers, MEDIA_TYPE)
