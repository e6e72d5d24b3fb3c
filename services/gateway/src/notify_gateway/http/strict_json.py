"""Strict JSON parsing: a field that occurs twice is an error, and so are very many fields or objects."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

# Each unknown or invalid field costs an error, which takes far more time and memory than the field. No object in our
# requests may have more than 50 fields.
MAX_FIELDS = 100
# Each object costs a call of `_unique_fields`. None of our requests has more than 10 objects.
MAX_OBJECTS = 100


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON can be of any type
    """Parse `body`; raise `JSONDecodeError` if it is not valid JSON, or has a field twice, or too many of anything."""
    try:
        return json.loads(body, object_pairs_hook=partial(_unique_fields, count(1)))
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # invalid UTF-8, an overlong number or excessive nesting
        raise json.JSONDecodeError(f"{type(error).__name__}: {error}", "", 0) from None


def _unique_fields(number: Iterator[int], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if next(number) > MAX_OBJECTS:
        raise json.JSONDecodeError(f"there are more than {MAX_OBJECTS} objects", "", 0)
    if len(pairs) > MAX_FIELDS:
        raise json.JSONDecodeError(f"an object has more than {MAX_FIELDS} fields", "", 0)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise json.JSONDecodeError("a field occurs twice", "", 0)
    return fields
