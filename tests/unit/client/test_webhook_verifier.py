"""The verifier of webhooks accepts exactly what the service signs."""

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from notify_client import ConfigurationError, InvalidWebhook
from notify_client.webhooks import verify
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_webhook_sender.webhook import payload, signature
from standardwebhooks import Webhook
from support.services import delivery_requested

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
KEYS = [bytes([number]) * 32 for number in (1, 2, 3)]
OLD, NEW, FOREIGN = (f"whsec_{b64encode(key).decode()}" for key in KEYS)
BODY = json.dumps(
    {
        "type": "notification",
        "timestamp": "2026-11-26T11:59:00+00:00",
        "data": {
            "notification_id": "01a20fef-757b-7769-8f68-f865c55d4831",
            "user_id": 1,
            "user": "1",
            "subject": None,
            "message": "Grüße",
            "new": 1,
        },
        "new": 1,
    },
    ensure_ascii=False,
).encode()


def signed(*secrets: str, body: bytes = BODY, at: datetime = NOW) -> dict[str, str]:
    """Return the headers, with signatures by the reference implementation."""
    signatures = [Webhook(secret).sign("delivery-1", at, body.decode()) for secret in secrets]
    return {
        "Webhook-Id": "delivery-1",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": " ".join(signatures),
    }


def test_verified_webhook_is_typed() -> None:
    event = verify(BODY, signed(NEW), NEW, now=NOW)
    assert (event.id, event.type, event.data.user, event.data.message) == ("delivery-1", "notification", "1", "Grüße")
    assert event.data.subject is None
    assert verify(BODY.decode(), signed(NEW), [NEW], now=NOW) == event
    assert verify(BODY, signed(NEW), f"{OLD} {NEW}", now=NOW) == event


@pytest.mark.parametrize(
    ("signing", "accepting"), [([NEW, OLD], [OLD]), ([OLD], [NEW, OLD]), ([NEW, OLD], [NEW]), ([NEW], [OLD, NEW])]
)
def test_secrets_can_be_replaced_on_either_side_first(signing: list[str], accepting: list[str]) -> None:
    assert verify(BODY, signed(*signing), accepting, now=NOW).id == "delivery-1"


@pytest.mark.parametrize(
    "change",
    [
        {"secrets": FOREIGN},
        {"body": BODY.replace(b"Gr", b"gr")},
        {"body": json.dumps(json.loads(BODY), indent=1).encode()},
        {"headers": {**signed(NEW), "Webhook-Id": "delivery-2"}},
        {"headers": {**signed(NEW), "Webhook-Timestamp": str(int(NOW.timestamp()) + 1)}},
        {"headers": {**signed(NEW), "Webhook-Timestamp": "x"}},
        {"headers": {**signed(NEW), "Webhook-Signature": ""}},
        {"headers": {**signed(NEW), "Webhook-Signature": "v1,"}},
        {"headers": {**signed(NEW), "Webhook-Signature": "v1,ü"}},
        {"headers": {**signed(NEW), "Webhook-Signature": signed(NEW)["Webhook-Signature"].replace("v1,", "v2,")}},
        {"headers": {name: value for name, value in signed(NEW).items() if name != "Webhook-Signature"}},
        {"headers": signed(NEW, at=NOW - timedelta(seconds=301))},
        {"headers": signed(NEW, at=NOW + timedelta(seconds=301))},
        {"headers": signed(NEW, body=b"{}"), "body": b"{}"},
    ],
)
def test_anything_else_is_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidWebhook):
        verify(**{"body": BODY, "headers": signed(NEW), "secrets": NEW, "now": NOW, **change})


def test_tolerance_can_be_chosen() -> None:
    late = signed(NEW, at=NOW - timedelta(hours=1))
    assert verify(BODY, late, NEW, tolerance=timedelta(hours=1), now=NOW).id == "delivery-1"


@pytest.mark.parametrize("secrets", ["", [], ["whsec_"], "whsec_not-base64", "whsec_ü"])
def test_unusable_secrets_are_an_error_of_the_receiver(secrets: str | list[str]) -> None:
    with pytest.raises(ConfigurationError):
        verify(BODY, signed(NEW), secrets, now=NOW)


@pytest.mark.parametrize("user", [{"user_id": 77}, {"user_id": 1, "user_key": "3fa85f64-5717-4562-b3fc-2c963f66afa6"}])
def test_what_the_sender_signs_is_accepted(user: dict[str, object]) -> None:
    request = delivery_requested(channel=Channel.WEBHOOK, notification_id=new_id(NOW), **user)
    body, timestamp = payload(request), str(int(NOW.timestamp()))
    headers = {
        "webhook-id": str(request.delivery_id),
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(KEYS[1], str(request.delivery_id), timestamp, body),
    }
    event = verify(body, headers, [NEW], now=NOW)
    assert UUID(event.id) == request.delivery_id
    assert (event.data.notification_id, event.data.user) == (request.notification_id, request.user)
    assert event.data.message == request.content.message
