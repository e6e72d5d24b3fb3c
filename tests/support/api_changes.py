"""Find the changes between two OpenAPI documents that break a client which was written for the older one."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
METHODS = {"get", "post", "put", "patch", "delete"}


def breaking_changes(old: Json, new: Json) -> Iterator[str]:
    """Describe each breaking change: what a client sends is refused, or what it reads is gone or has another type."""
    for path, operations in old["paths"].items():
        for method in METHODS & operations.keys():
            where = f"{method.upper()} {path}"
            if method not in new["paths"].get(path, {}):
                yield f"{where}: is gone"
                continue
            before, after = operations[method], new["paths"][path][method]
            yield from _parameters(where, before, after)
            sent_before, sent_after = (_body(each.get("requestBody")) for each in (before, after))
            yield from _Comparison(old, new, sent=True).changes(f"{where}: request", sent_before, sent_after)
            for status, response in before["responses"].items():
                if status.startswith("2") and status not in after["responses"]:
                    yield f"{where}: status {status} is gone"
                read_before, read_after = _body(response), _body(after["responses"].get(status))
                yield from _Comparison(old, new, sent=False).changes(f"{where}: {status}", read_before, read_after)


def _parameters(where: str, before: Json, after: Json) -> Iterator[str]:
    old, new = (
        {(each["in"], each["name"]): each for each in operation.get("parameters", ())} for operation in (before, after)
    )
    for place, name in sorted(old.keys() - new.keys()):
        yield f"{where}: parameter {name} in {place} is gone"
    for key, parameter in new.items():
        if parameter.get("required") and not old.get(key, {}).get("required"):
            yield f"{where}: parameter {key[1]} in {key[0]} is required"


def _body(part: Json | None) -> Json:
    content = (part or {}).get("content", {})
    schema: Json = next((each.get("schema", {}) for each in content.values()), {})
    return schema


class _Comparison:
    """Compares the schemas of what clients send, or of what they read."""

    def __init__(self, old: Json, new: Json, *, sent: bool) -> None:
        self._old = old
        self._new = new
        self._sent = sent
        self._seen: set[str] = set()

    def changes(self, where: str, before: Json, after: Json) -> Iterator[str]:
        """Describe the breaking changes of a schema."""
        if (reference := before.get("$ref")) is not None:
            if reference in self._seen:
                return
            self._seen.add(reference)
        before, after = _resolve(self._old, before), _resolve(self._new, after)
        types_before, types_after = _types(self._old, before), _types(self._new, after)
        # A client may send any type of before, and understands no other type than one of before.
        if gone := (types_before - types_after if self._sent else types_after - types_before) - {"any"}:
            yield f"{where}: the type {', '.join(sorted(gone))} is {'refused' if self._sent else 'new'}"
        values_before: list[str] = before.get("enum", [])
        if self._sent and (values := {*values_before} - {*after.get("enum", values_before)}):
            yield f"{where}: the value {', '.join(sorted(values))} is refused"
        if "items" in before and "items" in after:
            yield from self.changes(f"{where}[]", before["items"], after["items"])
        yield from self._properties(where, before, after)

    def _properties(self, where: str, before: Json, after: Json) -> Iterator[str]:
        old, new = before.get("properties", {}), after.get("properties", {})
        for name in sorted(old.keys() - new.keys()):
            yield f"{where}.{name}: is gone"
        required_before, required_after = set(before.get("required", ())), set(after.get("required", ()))
        for name in sorted(required_after - required_before if self._sent else required_before - required_after):
            if self._sent or name in new:
                yield f"{where}.{name}: is {'required' if self._sent else 'no longer always there'}"
        for name in sorted(old.keys() & new.keys()):
            yield from self.changes(f"{where}.{name}", old[name], new[name])


def _resolve(document: Json, schema: Json) -> Json:
    """Follow references; of alternatives, return the only one that is not null."""
    while True:
        if (reference := schema.get("$ref")) is not None:
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            continue
        alternatives = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
        if len(alternatives) != 1:
            return schema
        schema = alternatives[0]


def _types(document: Json, schema: Json) -> set[str]:
    if "anyOf" in schema:
        return {kind for each in schema["anyOf"] for kind in _types(document, _resolve(document, each))}
    return {schema.get("type", "any")}
