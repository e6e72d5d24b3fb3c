"""Render long lists in slices. FastAPI would render a list in one step, in which all other requests wait."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from fastapi import Response
from pydantic import BaseModel

from notify_gateway.slices import in_slices

Item = TypeVar("Item")


async def json_array(items: Iterable[Item], form: Callable[[Item], BaseModel], *, exclude_none: bool) -> bytes:
    """Return the JSON of the items in this form."""
    rendered = [form(item).model_dump_json(exclude_none=exclude_none).encode() async for item in in_slices(items)]
    return b"[%b]" % b",".join(rendered)


async def json_page(
    items: Iterable[Item], form: Callable[[Item], BaseModel], next_cursor: object, response: Response
) -> Response:
    """Return the response with a page under `/v1`; `response` has further headers."""
    array = await json_array(items, form, exclude_none=True)
    cursor = b"" if next_cursor is None else b'"next_cursor":"%b",' % str(next_cursor).encode()
    has_more = b"false" if next_cursor is None else b"true"
    return json_response(b'{"items":%b,%b"has_more":%b}' % (array, cursor, has_more), response)


def json_response(content: bytes, response: Response) -> Response:
    """Return a response with this JSON; `response` has further headers."""
    return Response(content, 200, dict(response.headers), "application/json")
