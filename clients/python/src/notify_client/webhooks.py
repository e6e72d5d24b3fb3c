"""Verify the webhooks of the service (https://www.standardwebhooks.com)."""

import hashlib
import hmac
from base64 import b64decode, b64encode
from binascii import Error as InvalidBase64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydantic import ValidationError

from notify_client.errors import ConfigurationError, InvalidWebhook
from notify_client.models import Model

TOLERANCE = timedelta(minutes=5)
PREFIX = "whsec_"


class WebhookNotification(Model):
    """The notification that a webhook delivers."""

    notification_id: UUID
    user: str
    """Your own id of the user."""
    subject: str | None = None
    message: str


class WebhookContent(Model):
    """The body of a webhook."""

    type: str
    timestamp: datetime
    """The time at which the notification was accepted."""
    data: WebhookNotification


class WebhookEvent(WebhookContent):
    """A webhook whose signature is valid."""

    id: str
    """The id of the delivery. It is the same for each attempt, so use it to recognize repeats."""


def verify(
    body: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    tolerance: timedelta = TOLERANCE,
    now: datetime | None = None,
) -> WebhookEvent:
    """Return the webhook if it is signed with one of the secrets; otherwise raise `InvalidWebhook`.

    Several secrets may also be one text with spaces between them, as in the sender's setting `WEBHOOK_SECRETS`.
    Pass the body as it has arrived, because parsing and formatting it again would change it. Pass the old secret and
    the new one while a secret is being replaced. A webhook whose timestamp differs from now by more than `tolerance` is
    invalid, because somebody may have recorded it.
    """
    content = body.encode() if isinstance(body, str) else body
    values = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (values[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as missing:
        raise InvalidWebhook(f"The header {missing} is missing.") from None
    signed = f"{message_id}.{timestamp}.".encode() + content
    if not _is_signed(signed, signatures, _keys(secrets)):
        raise InvalidWebhook("No signature matches.")
    if abs((now or datetime.now(UTC)) - _time(timestamp)) > tolerance:
        raise InvalidWebhook("The timestamp is too old or too far ahead.")
    try:
        return WebhookEvent(id=message_id, **vars(WebhookContent.model_validate_json(content)))
    except ValidationError as error:
        fields = [".".join(map(str, each["loc"])) for each in error.errors(include_input=False)]
        raise InvalidWebhook(f"The signature is valid, but the body is not: {fields}") from None


def _is_signed(signed: bytes, signatures: str, keys: Sequence[bytes]) -> bool:
    expected = [b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    return any(hmac.compare_digest(given, each) for given in _version_1(signatures) for each in expected)


def _version_1(signatures: str) -> Iterator[bytes]:
    for signature in signatures.split(" "):
        version, _, value = signature.partition(",")
        if version == "v1":
            yield value.encode()


def _time(timestamp: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(timestamp), UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidWebhook("The timestamp is not a number of seconds.") from None


def _keys(secrets: str | Sequence[str]) -> list[bytes]:
    secrets = secrets.split() if isinstance(secrets, str) else secrets
    try:
        keys = [b64decode(secret.strip().removeprefix(PREFIX), validate=True) for secret in secrets]
    except (InvalidBase64, ValueError):
        raise ConfigurationError(f"A secret is {PREFIX} followed by base64.") from None
    if not keys or not all(keys):
        raise ConfigurationError("There is no secret, or an empty one.")
    return keys
