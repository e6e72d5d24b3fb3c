"""The settings that services share, which are read from the environment, and the errors for invalid values."""

import sys
from typing import Annotated, Self, TypeVar

from pydantic import BeforeValidator, Field, HttpUrl, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from typing_extensions import override

from notify_common.runtime.logging import LogFormat
from notify_common.runtime.secret_files import SecretFiles
from notify_common.runtime.tracing import UNTRACED, Tracing

LogLevel = Annotated[
    str, BeforeValidator(lambda level: str(level).upper()), Field(pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$")
]

EXAMPLE_SECRET = "change-me"  # noqa: S105 - every secret in an example contains it


class EnvironmentSettings(BaseSettings):
    """The base of all settings. The environment takes precedence over `.env`; an empty value counts as not set."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the most important first. Each of the two that have variables may name secret files."""
        in_environment, in_dotenv = (SecretFiles(settings_cls, each) for each in (env_settings, dotenv_settings))
        return init_settings, in_environment, env_settings, in_dotenv, dotenv_settings

    def plain_text(self) -> list[str]:
        """Return the variables that would encrypt connections to other machines, and that are not set."""
        return []


class ServiceSettings(EnvironmentSettings):
    """The settings of every service."""

    log_level: LogLevel = "INFO"
    log_format: LogFormat | None = None
    allow_insecure: bool = False

    def example_secrets(self) -> list[str]:
        """Return the variables whose secrets are those of an example."""
        return [
            name.upper()
            for name, value in self
            if isinstance(value, SecretStr) and EXAMPLE_SECRET in value.get_secret_value()
        ]

    @model_validator(mode="after")
    def _no_example_secrets(self) -> Self:
        if not self.allow_insecure and (variables := self.example_secrets()):
            raise ValueError(
                f"{', '.join(variables)}: must not contain {EXAMPLE_SECRET}, because everyone can read examples; "
                "`make env` creates random secrets, and ALLOW_INSECURE=1 allows those of examples"
            )
        return self


class TracedSettings(EnvironmentSettings):
    """The settings of every service that takes part in traces."""

    otel_exporter_otlp_endpoint: HttpUrl | None = None

    def tracing(self, service: str) -> Tracing:
        """Return the tracing for `service`, which exports spans over OTLP/HTTP if an endpoint is set."""
        if self.otel_exporter_otlp_endpoint is None:
            return UNTRACED
        # This is imported only if it is needed, because loading OpenTelemetry's SDK takes 15 MB and 75 ms.
        from notify_common.runtime.span_export import export_spans  # noqa: PLC0415

        return export_spans(str(self.otel_exporter_otlp_endpoint), service)


class WorkerSettings(ServiceSettings, TracedSettings):
    """The settings of every service without an API; each has its own default for `health_port`."""

    health_host: str = "127.0.0.1"
    health_port: int = Field(ge=1, le=65535)


Settings = TypeVar("Settings", bound=BaseSettings)


def load_settings(settings_class: type[Settings]) -> Settings:
    """Return the settings. If a value is invalid, exit with a message that names its variable."""
    try:
        return settings_class()
    except ValidationError as error:
        # The message does not show the values, because one of them may be a secret.
        sys.exit("Invalid settings:\n  " + "\n  ".join(map(_problem, error.errors())))
    except SettingsError as error:
        sys.exit(f"Invalid settings:\n  {error}")


def _problem(error: ErrorDetails) -> str:
    """Format one validation error, prefixed with its variable. Errors about several variables already name them."""
    variable = ".".join(map(str, error["loc"])).upper()
    message = error["msg"].removeprefix("Value error, ")
    return f"{variable}: {message}" if variable else message
