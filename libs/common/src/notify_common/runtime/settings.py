"""Settings from the environment: what every service has, and how a wrong value is reported."""

import sys
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, HttpUrl, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from notify_common.runtime.logging import LogFormat
from notify_common.runtime.tracing import UNTRACED, Tracing

LogLevel = Annotated[
    str,
    BeforeValidator(lambda level: str(level).upper()),
    Field(pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$"),
]


class EnvironmentSettings(BaseSettings):
    """Read from the environment, then from `.env`; what is empty is not set. All settings derive from it."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")


class ServiceSettings(EnvironmentSettings):
    """What every service has."""

    log_level: LogLevel = "INFO"
    log_format: LogFormat | None = None


class TracedSettings(EnvironmentSettings):
    """What every service has whose work belongs to a trace."""

    otel_exporter_otlp_endpoint: HttpUrl | None = None

    def tracing(self, service: str) -> Tracing:
        """Return the tracing of `service`: exported over OTLP/HTTP if an endpoint is set."""
        if self.otel_exporter_otlp_endpoint is None:
            return UNTRACED
        # Imported here because OpenTelemetry's SDK takes 15 MB and 75 ms.
        from notify_common.runtime.span_export import export_spans  # noqa: PLC0415

        return export_spans(str(self.otel_exporter_otlp_endpoint), service)


class WorkerSettings(ServiceSettings, TracedSettings):
    """Where a service without an API answers for its health; `health_port` is each worker's own."""

    health_host: str = "127.0.0.1"


Settings = TypeVar("Settings", bound=BaseSettings)


def load_settings(settings_class: type[Settings]) -> Settings:
    """Settings from the environment; a wrong value ends the process with a message that names the variable."""
    try:
        return settings_class()
    except ValidationError as error:
        # The values stay out of it: one of them may be a secret.
        sys.exit("Wrong settings:\n  " + "\n  ".join(map(_problem, error.errors())))


def _problem(error: ErrorDetails) -> str:
    """What is wrong with one variable; a rule over several names them itself."""
    variable = ".".join(map(str, error["loc"])).upper()
    message = error["msg"].removeprefix("Value error, ")
    return f"{variable}: {message}" if variable else message
