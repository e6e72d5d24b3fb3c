"""The gateway's settings."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.hosts import AddressList, addresses
from notify_common.runtime.networks import NetworkList, is_local, is_loopback
from notify_common.runtime.settings import EnvironmentSettings, ServiceSettings, TracedSettings
from notify_database.engine import PostgresSettings
from pydantic import AfterValidator, Field, HttpUrl, SecretStr, model_validator

KEY_FORM = re.compile(r"[A-Za-z0-9_-]{43,200}")
"""The form of all API keys. 43 characters of base64url carry 32 random bytes."""


def _bootstrap_key(key: SecretStr) -> SecretStr:
    if KEY_FORM.fullmatch(key.get_secret_value()) is None:
        raise ValueError("must be 43 to 200 characters A-Z, a-z, 0-9, - and _, such as those of: openssl rand -hex 32")
    return key


class Auth(StrEnum):
    """The setting that turns authentication on or off."""

    ON = "on"
    OFF = "off"


def host_names(text: str) -> frozenset[str]:
    """Return the hosts in `text`, in lower case and without ports; raise `ValueError` if one is invalid."""
    hosts = [re.fullmatch(r"(\[[0-9a-f:.]+\]|[0-9a-z][0-9a-z._-]*)(?::[0-9]+)?", host) for host in text.lower().split()]
    if None in hosts or not hosts:
        raise ValueError
    return frozenset(host[1] for host in hosts if host is not None)


def _hosts(text: str) -> str:
    try:
        host_names(text)
    except ValueError:
        raise ValueError("must be host names such as notify.example.org, separated by spaces") from None
    return text


class ProviderSettings(EnvironmentSettings):
    """The provider of each channel. The channel's sender reads the same setting."""

    telegram_provider: Literal["simulator", "bot_api"] = "simulator"
    email_provider: Literal["simulator", "smtp"] = "simulator"
    webhook_provider: Literal["simulator", "http"] = "simulator"

    def real_channels(self) -> frozenset[Channel]:
        """Return the channels that are not simulated, and therefore need a recipient."""
        return frozenset(channel for channel in Channel if getattr(self, f"{channel}_provider") != "simulator")


class ManagementSettings(RabbitSettings):
    """RabbitMQ, and the addresses of its management API."""

    rabbitmq_management_url: HttpUrl | None = None
    rabbitmq_management_hosts: AddressList | None = None

    @model_validator(mode="after")
    def _management_password_is_encrypted(self) -> Self:
        url = self.rabbitmq_management_url
        if url is not None and self.rabbitmq_management_hosts is not None:
            raise ValueError("RABBITMQ_MANAGEMENT_URL and RABBITMQ_MANAGEMENT_HOSTS: set only one of them")
        if self.rabbitmq_tls and url is not None and url.scheme == "http" and not is_local(url.host or ""):
            raise ValueError(
                "RABBITMQ_MANAGEMENT_URL: must begin with https:// on another machine if RABBITMQ_TLS is true"
            )
        return self

    def management_urls(self) -> Sequence[HttpUrl]:
        """Return the URLs of RabbitMQ's management API; with `RABBITMQ_MANAGEMENT_HOSTS`, one for each node."""
        if self.rabbitmq_management_hosts is None:
            return [] if self.rabbitmq_management_url is None else [self.rabbitmq_management_url]
        scheme, port = ("https", 15671) if self.rabbitmq_tls else ("http", 15672)
        return [HttpUrl(f"{scheme}://{address}") for address in addresses(self.rabbitmq_management_hosts, port)]


class GatewaySettings(ServiceSettings, TracedSettings, PostgresSettings, ManagementSettings, ProviderSettings):
    """All settings of the gateway."""

    app_host: str = "127.0.0.1"
    app_port: int = Field(8080, ge=1, le=65535)
    health_host: str = "127.0.0.1"
    health_port: int = Field(8085, ge=1, le=65535)
    shutdown_delay: float = Field(5.0, ge=0, le=600)
    max_waiting_requests: int = Field(5000, ge=1)
    postgres_pool_size: int = Field(10, ge=5, le=200)
    auth: Auth = Auth.ON
    allowed_hosts: Annotated[str, AfterValidator(_hosts)] | None = None
    bootstrap_api_key: Annotated[SecretStr, AfterValidator(_bootstrap_key)] | None = None
    rate_limit: int = Field(1000, ge=0)
    trusted_proxies: NetworkList | None = None
    repair_after: float = Field(129_600.0, ge=1, le=365 * 86_400)
    rabbitmq_ui_url: HttpUrl | None = None
    trace_url: Annotated[str, Field(pattern=r"^https?://.*\{trace_id\}")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.app_port == self.health_port:
            raise ValueError("HEALTH_PORT: must differ from APP_PORT")
        if self.auth is Auth.OFF and not is_loopback(self.app_host) and not self.allow_insecure:
            raise ValueError(
                f"AUTH: off would admit everyone who can reach {self.app_host} (APP_HOST); "
                "turn it on, listen on 127.0.0.1, or set ALLOW_INSECURE=1"
            )
        return self

    def allowed_host_names(self) -> frozenset[str]:
        """Return the hosts in `ALLOWED_HOSTS`, in lower case and without ports."""
        return frozenset() if self.allowed_hosts is None else host_names(self.allowed_hosts)

    def admits_any_host(self) -> bool:
        """Return whether requests may name any host: with a key, they need no protection from DNS rebinding."""
        return self.auth is Auth.ON and self.allowed_hosts is None
