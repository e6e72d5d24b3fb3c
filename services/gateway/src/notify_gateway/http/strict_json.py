"""Strict JSON parsing: a field that occurs twice is an error, and so are very many fields, objects or other values."""

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
# A few long texts are parsed in half a millisecond, but thousands of lists or numbers block the event loop for ten. The
# largest valid request has 130 texts, and about 500 characters outside of them, not counting spaces.
MAX_TEXTS = 2_000
MAX_OUTSIDE_TEXTS = 4_096  # characters


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON can be of any type
    """Parse `body`; raise `JSONDecodeError` if it is not valid JSON, or has a field twice, or too many of anything."""
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        _require_few_values(text)
        return json.loads(text, object_pairs_hook=partial(_unique_fields, count(1)))
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # invalid UTF-8, an overlong number or excessive nesting
        raise json.JSONDecodeError(f"{type(error).__name__}: {error}", "", 0) from None


def _require_few_values(text: str) -> None:
    """Raise `JSONDecodeError` if a JSON text would take long to parse; after an error in it, nothing counts."""
    if len(text) <= MAX_OUTSIDE_TEXTS:
        return
    without_escaped_quotes = text.replace("\\\\", "").replace('\\"', "")
    parts = without_escaped_quotes.split('"', 2 * MAX_TEXTS)
    outside = "".join(parts[::2]).split(None, MAX_OUTSIDE_TEXTS)
    if len(parts) > 2 * MAX_TEXTS or sum(map(len, outside)) > MAX_OUTSIDE_TEXTS:
        raise json.JSONDecodeError("there are too many values", "", 0)


def _unique_fields(number: Iterator[int], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if next(number) > MAX_OBJECTS:
        raise json.JSONDecodeError(f"there are more than {MAX_OBJECTS} objects", "", 0)
    if len(pairs) > MAX_FIELDS:
        raise json.JSONDecodeError(f"an object has more than {MAX_FIELDS} fields", "", 0)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise json.JSONDecodeError("a field occurs twice", "", 0)
    return fields
