"""Queued messages must stay readable after an upgrade, so golden files are added but never changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from notify_common.contracts.messages import DeliveryRequested, DeliveryResults, ResultsEnvelope, StatusChanges
from pydantic import BaseModel, ValidationError

GOLDEN = Path(__file__).with_name("golden")
MESSAGES = (DeliveryRequested, DeliveryResults, StatusChanges)


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
