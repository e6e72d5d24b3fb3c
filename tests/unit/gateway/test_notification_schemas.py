from typing import Any

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.users import MAX_INTEGER_USER
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from pydantic import ValidationError

VALID: dict[str, Any] = {"user_id": 123, "message": "Your code: 11111", "type": "telegram"}


def test_single_channel_can_be_requested_with_type_or_channels() -> None:
    by_type = LegacyNotificationRequest.model_validate(VALID)
    by_channels = LegacyNotificationRequest.model_validate({"user_id": 1, "message": "x", "channels": ["telegram"]})
    assert by_type.requested_channels() == by_channels.requested_channels() == [Channel.TELEGRAM]


@pytest.mark.parametrize("user_id", [1, MAX_INTEGER_USER])
def test_user_id_accepts_all_positive_64_bit_integers(user_id: int) -> None:
    assert LegacyNotificationRequest.model_validate({**VALID, "user_id": user_id}).user_id == user_id


@pytest.mark.parametrize(
    "message", ["x", "x" * 16_384, "日本語", "line\nline", "😀"], ids=["short", "longest", "cjk", "lines", "emoji"]
)
def test_message_is_kept_verbatim(message: str) -> None:
    assert LegacyNotificationRequest.model_validate({**VALID, "message": message}).message == message


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": 0}, {"user_id": MAX_INTEGER_USER + 1}, {"user_id": "1"}, {"user_id": True}, {"user_id": 1.0},
        {"message": ""}, {"message": " \n"}, {"message": "a\x00b"}, {"message": "x" * 16_385}, {"message": "\ud800"},
        {"type": "pigeon"}, {"type": None}, {"channels": ["email"]},
        {"type": None, "channels": []}, {"type": None, "channels": ["email", "email"]},
        {"recipient": {"email": "a@example.org"}}, {"recipient": {"telegram": "not a chat"}},
        {"recipient": {"pigeon": "coop 7"}},
        {"subject": "two\nlines"}, {"subject": ""},
        {"metadata": {"nested": {"no": "way"}}}, {"metadata": {"n": 1}}, {"metadata": {"nul": "\x00"}},
        {"unknown": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_invalid_notification_is_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LegacyNotificationRequest.model_validate({**VALID, **change})


def test_mailbox_that_takes_long_to_parse_is_rejected() -> None:
    email = {**VALID, "type": "email"}
    named = "Example Shop <a@example.org>"
    assert LegacyNotificationRequest.model_validate({**email, "recipient": {"email": named}}).recipient.email == (
        "a@example.org"
    )
    long = " " * 2_000 + "a@example.org"
    for change in ({"recipient": {"email": long}}, {"email": {"reply_to": long}}):
        with pytest.raises(ValidationError, match="must not be longer than 500 characters"):
            LegacyNotificationRequest.model_validate({**email, **change})


def test_url_that_takes_long_to_parse_is_rejected() -> None:
    email = {**VALID, "type": "email", "email": {"list_unsubscribe": f"https://{'1.' * 120_000}/"}}
    with pytest.raises(ValidationError, match="must not be longer than 900 characters"):
        LegacyNotificationRequest.model_validate(email)
