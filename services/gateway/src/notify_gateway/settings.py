"""The gateway's settings."""

from enum import StrEnum
from typing import Annotated, Self

from notify_common.channels import ProviderSettings
from notify_common.process import ServiceSettings, TracedSettings
from notify_common.rabbitmq import RabbitSettings
from notify_database.engine import PostgresSettings
from pydantic import Field, HttpUrl, SecretStr, model_validator

from notify_gateway.schemas import ConsoleLinks

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
EXAMPLE_SECRET = "change-me"  # noqa: S105 - what the secrets of .env.example have in common


class Auth(StrEnum):
    """Whether the API asks for keys."""

    ON = "on"
    OFF = "off"


class GatewaySettings(ServiceSettings, TracedSettings, PostgresSettings, RabbitSettings, ProviderSettings):
    """What the gateway needs."""

    app_host: str = "127.0.0.1"
    app_port: int = Field(8080, ge=1, le=65535)
    health_host: str = "127.0.0.1"
    health_port: int = Field(8085, ge=1, le=65535)
    max_waiting_requests: int = Field(5000, ge=1)
    postgres_pool_size: int = Field(10, ge=5, le=200)
    auth: Auth = Auth.ON
    allow_insecure: bool = False
    bootstrap_api_key: SecretStr | None = Field(None, min_length=20, max_length=200)
    rate_limit: int = Field(0, ge=0)
    retention_days: int = Field(0, ge=0, le=36500)
    rabbitmq_management_url: HttpUrl | None = None
    rabbitmq_ui_url: HttpUrl | None = None
    trace_url: Annotated[str, Field(pattern=r"^https?://.*\{trace_id\}")] | None = None

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.app_port == self.health_port:
            raise ValueError("HEALTH_PORT: must be another port than APP_PORT")
        return self

    @model_validator(mode="after")
    def _is_not_open_to_others(self) -> Self:
        if self.auth is Auth.OFF and self.app_host not in LOOPBACK and not self.allow_insecure:
            raise ValueError(
                f"AUTH: off would let everybody in who can reach {self.app_host} (APP_HOST); "
                "turn it on, listen on 127.0.0.1, or set ALLOW_INSECURE=1"
            )
        return self

    def links(self) -> ConsoleLinks:
        """Where the console leads to."""
        ui = self.rabbitmq_ui_url
        return ConsoleLinks(rabbitmq=None if ui is None else str(ui), trace=self.trace_url)

    def example_secrets(self) -> list[str]:
        """The variables that still have the value of the example file."""
        secrets = {name: getattr(self, name) for name in type(self).model_fields}
        return [
            name.upper()
            for name, value in secrets.items()
            if isinstance(value, SecretStr) and EXAMPLE_SECRET in value.get_secret_value()
        ]
