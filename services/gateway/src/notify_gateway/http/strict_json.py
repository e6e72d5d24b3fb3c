"""Strict JSON parsing: a field that occurs twice is an error, and so is an object with very many fields."""

import json
from typing import Any

# Each unknown or invalid field costs an error, which takes far more time and memory than the field. No object in our
# requests may have more than 50 fields.
MAX_FIELDS = 100


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON can be of any type
    """Parse `body`; raise `JSONDecodeError` if it is not valid JSON, or an object has a field twice or too many."""
    try:
        return json.loads(body, object_pairs_hook=_unique_fields)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # invalid UTF-8, an overlong number or excessive nesting
        raise json.JSONDecodeError(f"{type(error).__name__}: {error}", "", 0) from None


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_FIELDS:
        raise json.JSONDecodeError(f"an object has more than {MAX_FIELDS} fields", "", 0)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise json.JSONDecodeError("a field occurs twice", "", 0)
    return fields
