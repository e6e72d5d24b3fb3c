"""Settings from the environment: those of every service, and how an invalid value is reported."""

import sys
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, HttpUrl, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from notify_common.runtime.logging import LogFormat
from notify_common.runtime.tracing import UNTRACED, Tracing

LogLevel = Annotated[
    str, BeforeValidator(lambda level: str(level).upper()), Field(pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$")
]


class EnvironmentSettings(BaseSettings):
    """The base of all settings: read from the environment, then from `.env`; an empty value counts as not set."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")


class ServiceSettings(EnvironmentSettings):
    """The settings of every service."""

    log_level: LogLevel = "INFO"
    log_format: LogFormat | None = None


class TracedSettings(EnvironmentSettings):
    """The settings of every service that takes part in traces."""

    otel_exporter_otlp_endpoint: HttpUrl | None = None

    def tracing(self, service: str) -> Tracing:
        """Return the tracing of `service`: exported over OTLP/HTTP if an endpoint is set."""
        if self.otel_exporter_otlp_endpoint is None:
            return UNTRACED
        # Imported here because OpenTelemetry's SDK takes 15 MB and 75 ms.
        from notify_common.runtime.span_export import export_spans  # noqa: PLC0415

        return export_spans(str(self.otel_exporter_otlp_endpoint), service)


class WorkerSettings(ServiceSettings, TracedSettings):
    """The settings of every service without an API; each has its own default for `health_port`."""

    health_host: str = "127.0.0.1"
    health_port: int = Field(ge=1, le=65535)


Settings = TypeVar("Settings", bound=BaseSettings)


def load_settings(settings_class: type[Settings]) -> Settings:
    """Return the settings; exit with a message that names the variable if a value is invalid."""
    try:
        return settings_class()
    except ValidationError as error:
        # Without the values, because one of them may be a secret.
        sys.exit("Wrong settings:\n  " + "\n  ".join(map(_problem, error.errors())))


def _problem(error: ErrorDetails) -> str:
    """Return what is wrong with one variable; a rule over several variables names them itself."""
    variable = ".".join(map(str, error["loc"])).upper()
    message = error["msg"].removeprefix("Value error, ")
    return f"{variable}: {message}" if variable else message
