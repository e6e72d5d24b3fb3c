"""Queued messages must stay readable after an upgrade, so golden files are added but never changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from notify_common.contracts.messages import (
    LATEST_TIME,
    MAX_CHANGES,
    MAX_CHANGES_BYTES,
    MAX_ONE_STEP_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESULTS,
    MAX_RESULTS_BYTES,
    SHORT_TEXT_LENGTH,
    DeliveryRequested,
    DeliveryResults,
    ResultsEnvelope,
    StatusChanges,
)
from pydantic import BaseModel, ValidationError

GOLDEN = Path(__file__).with_name("golden")
MESSAGES = (DeliveryRequested, DeliveryResults, StatusChanges)
Message = DeliveryRequested | DeliveryResults | StatusChanges


def _only_golden_fields(written: Any, golden: Any) -> Any:
    """Return `written` without the fields that were added after the golden message was recorded."""
    if isinstance(golden, dict):
        return {key: _only_golden_fields(written[key], golden[key]) for key in golden}
    if isinstance(golden, list):
        return [_only_golden_fields(*pair) for pair in zip(written, golden, strict=True)]
    return written


@pytest.mark.parametrize("model", MESSAGES)
def test_golden_message_survives_a_round_trip(model: type[BaseModel]) -> None:
    golden = (GOLDEN / f"{model.__name__}.json").read_text()
    written = json.loads(model.model_validate_json(golden).model_dump_json())
    assert _only_golden_fields(written, json.loads(golden)) == json.loads(golden)


def test_message_of_a_test_delivery_has_no_recipient_for_senders_that_do_not_know_tests() -> None:
    golden = (GOLDEN / "DeliveryRequested.json").read_text()
    requested = DeliveryRequested.model_validate_json(golden).model_copy(update={"test": True})
    sent = json.loads(requested.body())
    assert (sent["recipient"], sent["test_recipient"]) == (None, "a@example.org")
    retried = DeliveryRequested.model_validate(sent).model_copy(update={"attempt": 5})
    assert json.loads(retried.body()) == {**sent, "attempt": 5}


@pytest.mark.parametrize("model", MESSAGES)
def test_unknown_field_from_a_newer_sender_is_ignored(model: type[BaseModel]) -> None:
    golden = json.loads((GOLDEN / f"{model.__name__}.json").read_text())
    model.model_validate_json(json.dumps({**golden, "field_of_the_future": 1}))


@pytest.mark.parametrize("model", [*MESSAGES, ResultsEnvelope])
def test_message_with_another_version_is_rejected(model: type[BaseModel]) -> None:
    name = "DeliveryResults" if model is ResultsEnvelope else model.__name__
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    with pytest.raises(ValidationError, match="version"):
        model.model_validate_json(json.dumps({**golden, "version": 2}))


def test_headers_returns_a_new_dictionary_on_each_call() -> None:
    request = DeliveryRequested.model_validate_json((GOLDEN / "DeliveryRequested.json").read_text())
    assert request.headers() == request.headers()
    assert request.headers() is not request.headers()


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize(
    ("model", "field"),
    [
        *((DeliveryRequested, field) for field in ("not_before", "expires_at", "waiting_since")),
        *((DeliveryResults, field) for field in ("started_at", "finished_at", "next_attempt_at")),
        (StatusChanges, "changed_at"),
    ],
)
def test_time_that_some_time_zone_cannot_represent_is_rejected(model: type[BaseModel], field: str, time: str) -> None:
    golden = json.loads((GOLDEN / f"{model.__name__}.json").read_text())
    [changed] = golden.get("results") or golden.get("changes") or [golden]
    changed[field] = time
    with pytest.raises(ValidationError, match=field):
        model.model_validate_json(json.dumps(golden))
    changed[field] = LATEST_TIME.isoformat()
    model.model_validate_json(json.dumps(golden))


@pytest.mark.parametrize(("model", "items"), [(DeliveryResults, "results"), (StatusChanges, "changes")])
def test_message_with_many_unreadable_items_has_one_error(model: type[BaseModel], items: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        model.model_validate_json(json.dumps({"version": 1, items: [0] * 1000}))
    assert rejected.value.error_count() == 1


def test_largest_messages_are_read() -> None:
    """In JSON, a control character takes six bytes. Senders write it only to one text of a result."""
    longest, ascii_text = "\x01" * SHORT_TEXT_LENGTH, "x" * SHORT_TEXT_LENGTH
    [result] = json.loads((GOLDEN / "DeliveryResults.json").read_text())["results"]
    result |= {"error_text": longest, "error_code": ascii_text, "provider_message_id": None, "traceparent": "x" * 55}
    results = DeliveryResults.model_validate_json(json.dumps({"version": 1, "results": [result] * MAX_RESULTS}))
    assert len(results.model_dump_json()) < MAX_RESULTS_BYTES
    [change] = json.loads((GOLDEN / "StatusChanges.json").read_text())["changes"]
    change |= {"error_code": longest, "error_class": "unreachable", "channel": "telegram", "status": "cancelled"}
    changes = StatusChanges.model_validate_json(json.dumps({"version": 1, "changes": [change] * MAX_CHANGES}))
    assert len(changes.model_dump_json()) < MAX_CHANGES_BYTES


@pytest.mark.parametrize("model", MESSAGES)
def test_long_message_is_read_like_a_short_one(
    model: type[Message],
) -> None:
    golden = (GOLDEN / f"{model.__name__}.json").read_bytes()
    assert model.from_body(golden + b" " * MAX_ONE_STEP_BYTES) == model.from_body(golden)
    for unreadable in (golden[:-3], b"[" * 1000, b"\xff", b'{"version": 1}'):
        with pytest.raises(ValueError, match=r"JSON|valid|found|expected|EOF|recursion"):
            model.from_body(unreadable.ljust(MAX_ONE_STEP_BYTES + 1))


@pytest.mark.parametrize(
    ("model", "items", "size"),
    [
        (DeliveryRequested, None, MAX_REQUEST_BYTES),
        (DeliveryResults, "results", MAX_RESULTS_BYTES),
        (StatusChanges, "changes", MAX_CHANGES_BYTES),
    ],
)
def test_errors_of_a_long_message_do_not_copy_its_content(model: type[Message], items: str | None, size: int) -> None:
    item: dict[str, Any] = {"unknown": [{}] * (size // 4 - 100)}
    body = json.dumps({"version": 1, items: [item]} if items else item, separators=(",", ":")).encode()
    with pytest.raises(ValidationError) as rejected:
        model.from_body(body)
    inputs = [error["input"] for error in rejected.value.errors()]
    assert len(inputs) > 1
    assert len({id(each) for each in inputs}) == 1
