"""Requests as values: what to send, and how to read the response. Nothing here does any I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json, to_jsonable_python

from notify_client.config import Config
from notify_client.models import Page

Result = TypeVar("Result")
Item = TypeVar("Item")
ModelType = TypeVar("ModelType", bound=BaseModel)

_EMPTY = TypeAdapter(Literal[b""])


class Unset(Enum):
    """The type of `UNSET`, the default of fields for which None has a meaning of its own."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True, kw_only=True)
class Request(Generic[Result]):
    """A request, and how to read the response to it."""

    method: str
    path: str
    read: Callable[[bytes], Result]
    """Return the content of a successful response; may raise pydantic's `ValidationError`."""
    query: Mapping[str, object] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    idempotency_key: str = field(default_factory=lambda: str(uuid4()))
    """It stays the same when the request is sent again."""
    idempotent: bool = True
    """False if sending the request twice would do something twice, because the gateway ignores its idempotency key."""

    def to_httpx(self, config: Config, **headers: str) -> httpx.Request:
        """Return the request as httpx sends it."""
        headers = {**config.headers, **headers}
        content = None
        if self.method == "POST":
            headers["Idempotency-Key"] = self.idempotency_key
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            content = to_json(self.body)
        timeout = httpx.Timeout(config.timeout).as_dict()
        return httpx.Request(
            self.method,
            config.base_url + self.path,
            params=to_jsonable_python(self.query),
            headers=headers,
            content=content,
            extensions={"timeout": timeout},
        )


def given(**fields: object) -> dict[str, object]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def metadata_filters(metadata: Mapping[str, str] | None) -> dict[str, object]:
    """Return the query that finds what has these metadata."""
    return {f"metadata.{name}": value for name, value in (metadata or {}).items()}


def path(*segments: str | UUID) -> str:
    """Return the path of a resource. Segments may contain any characters, as ids of users do."""
    return "/v1/" + "/".join(quote(str(segment), safe="") for segment in segments)


def one(model: type[ModelType]) -> Callable[[bytes], ModelType]:
    """Return a function that reads a `model`."""
    return model.model_validate_json


def page(model: type[ModelType]) -> Callable[[bytes], Page[ModelType]]:
    """Return a function that reads a page of a list."""
    return Page[model].model_validate_json  # type: ignore[valid-type]  # it is a type at runtime


def nothing(content: bytes) -> None:
    """Read a response without content. Another server, such as a proxy, may respond with a page instead."""
    _EMPTY.validate_python(content)
