"""Strict JSON parsing: a field that occurs twice is an error."""

import json
from typing import Any


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON can be of any type
    """Parse `body`; raise `JSONDecodeError` if it is not valid JSON or contains a field twice."""
    try:
        return json.loads(body, object_pairs_hook=_unique_fields)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # invalid UTF-8, an overlong number or excessive nesting
        raise json.JSONDecodeError(f"{type(error).__name__}: {error}", "", 0) from None


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise json.JSONDecodeError("a field occurs twice", "", 0)
    return fields
