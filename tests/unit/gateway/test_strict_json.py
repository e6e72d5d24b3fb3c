"""Bodies that would take long to parse and to validate are rejected before that."""

import json
from collections.abc import Callable

import pytest
from notify_gateway.http.strict_json import parse_json

LONGEST = 256 * 1024  # bytes
HTML = '<a href="x">[1, 2]</a> C:\\ \\" {"k": [[], 1.5e3]},'


def _filled(begin: str, repeated: str, end: str) -> str:
    return begin + repeated * ((LONGEST - len(begin) - len(end)) // len(repeated)) + end


@pytest.mark.parametrize(
    "body",
    [
        _filled("[", "[],", "1]"),
        _filled("[", "1,", "1]"),
        _filled("[", "1.5e-300,", "1]"),
        _filled("[", "9" * 4_299 + ",", "1]"),
        _filled("[", '"",', "1]"),
        _filled('["\\"", "\\\\", "\\\\\\"", ', "[],", '""]'),
        _filled("[", " [ ] ,\n", "1]"),
        _filled('{"a": ', "[", ""),
    ],
    ids=["lists", "integers", "floats", "long integers", "texts", "after escapes", "with spaces", "nested"],
)
@pytest.mark.parametrize("encode", [str.encode, lambda text: f'["\u0122",{text}]'.encode("utf-16")[:LONGEST]])
def test_body_with_too_many_values_is_rejected_unparsed(body: str, encode: Callable[[str], bytes]) -> None:
    with pytest.raises(json.JSONDecodeError, match="too many values"):
        parse_json(encode(body))


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 8])
def test_long_texts_are_accepted_whatever_they_contain(ensure_ascii: bool, indent: int | None) -> None:
    body = {
        "message": '\\" ' * 5_000 + "é",
        "html": HTML * 600 + "\\",
        "metadata": {f"key {number}": "v,[" * 300 for number in range(50)},
        "channels": ["email", "webhook", "telegram"],
        "user_id": 2**63 - 1,
    }
    encoded = json.dumps(body, ensure_ascii=ensure_ascii, indent=indent).encode()
    assert parse_json(encoded) == body
    assert parse_json(encoded + b" " * (LONGEST - len(encoded))) == body
