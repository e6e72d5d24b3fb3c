"""The webhook sender's settings."""

from base64 import b64decode
from enum import StrEnum
from typing import Annotated, Self

from notify_common.runtime.networks import NetworkList
from notify_common.sending.service import SenderSettings
from pydantic import AfterValidator, Field, FilePath, SecretStr, model_validator

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix is public
MIN_SECRET, MAX_SECRET = 24, 64  # bytes
CONNECT_TIMEOUT = 10.0  # seconds for the lookup, connection and TLS; never more than half of an attempt's time


class WebhookProvider(StrEnum):
    """A way to send webhooks: simulated, or over HTTP."""

    SIMULATOR = "simulator"
    HTTP = "http"


def keys(secrets: SecretStr) -> list[bytes]:
    """Return the signing keys, at least one; raise `ValueError` if any is invalid."""
    words = secrets.get_secret_value().split()
    found = [b64decode(word.removeprefix(SECRET_PREFIX), validate=True) for word in words]
    prefixed = all(word.startswith(SECRET_PREFIX) for word in words)
    if not found or not prefixed or not all(MIN_SECRET <= len(key) <= MAX_SECRET for key in found):
        raise ValueError
    return found


def _secrets(secrets: SecretStr) -> SecretStr:
    try:
        keys(secrets)
    except ValueError:
        raise ValueError(
            "must be whsec_ followed by 24 to 64 base64-encoded bytes; separate multiple secrets with spaces"
        ) from None
    return secrets


class WebhookSenderSettings(SenderSettings):
    """The settings specific to this sender; times are in seconds."""

    webhook_sleep: float = Field(0.2, ge=0, le=600)
    health_port: int = Field(8084, ge=1, le=65535)
    webhook_provider: WebhookProvider = WebhookProvider.SIMULATOR
    webhook_secrets: Annotated[SecretStr, AfterValidator(_secrets)] | None = None
    webhook_allowed_networks: NetworkList | None = None
    webhook_ca_file: FilePath | None = None
    webhook_calls_per_host: int = Field(20, ge=1, le=1000)
    webhook_calls_per_domain: int = Field(50, ge=1, le=65535)
    webhook_calls_per_tenant: int | None = Field(None, ge=1, le=65535)

    @model_validator(mode="after")
    def _http_is_complete(self) -> Self:
        if self.webhook_provider is WebhookProvider.HTTP and self.webhook_secrets is None:
            raise ValueError("WEBHOOK_PROVIDER=http requires WEBHOOK_SECRETS")
        return self

    def connect_timeout(self) -> float:
        """Return the seconds within which a call has a connection, or fails."""
        return min(CONNECT_TIMEOUT, self.provider_timeout / 2)
