"""The webhook sender's settings."""

from base64 import b64decode
from enum import StrEnum
from typing import Annotated, Self

from notify_common.sending.service import SenderSettings
from pydantic import AfterValidator, Field, FilePath, SecretStr, model_validator

from notify_webhook_sender.addresses import networks

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret
SHORTEST_SECRET, LONGEST_SECRET = 24, 64  # bytes


class WebhookProvider(StrEnum):
    """What sends."""

    SIMULATOR = "simulator"
    HTTP = "http"


def keys(secrets: SecretStr) -> list[bytes]:
    """The keys that are signed with, at least one; raises `ValueError`."""
    found: list[bytes] = []
    for secret in secrets.get_secret_value().split():
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        if not secret.startswith(SECRET_PREFIX) or not SHORTEST_SECRET <= len(key) <= LONGEST_SECRET:
            raise ValueError
        found.append(key)
    if not found:
        raise ValueError
    return found


def _secrets(secrets: SecretStr) -> SecretStr:
    try:
        keys(secrets)
    except ValueError:
        raise ValueError("should be whsec_ and 24 to 64 bytes in base64, several of them with spaces between") from None
    return secrets


def _networks(text: str) -> str:
    try:
        networks(text)
    except ValueError:
        raise ValueError("should be networks such as 10.1.0.0/16, several of them with spaces between") from None
    return text


class WebhookSenderSettings(SenderSettings):
    """What only this sender has; times are seconds."""

    webhook_sleep: float = Field(0.2, ge=0, le=600)
    health_port: int = Field(8084, ge=1, le=65535)
    webhook_provider: WebhookProvider = WebhookProvider.SIMULATOR
    webhook_secrets: Annotated[SecretStr, AfterValidator(_secrets)] | None = None
    webhook_allowed_networks: Annotated[str, AfterValidator(_networks)] | None = None
    webhook_ca_file: FilePath | None = None
    webhook_calls_per_host: int = Field(20, ge=1, le=1000)

    @model_validator(mode="after")
    def _http_is_complete(self) -> Self:
        if self.webhook_provider is WebhookProvider.HTTP and self.webhook_secrets is None:
            raise ValueError("WEBHOOK_PROVIDER: http needs WEBHOOK_SECRETS")
        return self
