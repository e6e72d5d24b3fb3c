"""Parse JSON strictly: a field that occurs twice is an error."""

import json
from typing import Any


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON is anything
    """Return what `body` says; raise `JSONDecodeError` if it is not JSON or names a field twice."""
    try:
        return json.loads(body, object_pairs_hook=_unique_fields)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, a number too long, nested too deeply
        raise json.JSONDecodeError(f"{type(error).__name__}: {error}", "", 0) from None


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise json.JSONDecodeError("a field comes twice", "", 0)
    return fields
