"""Reads secrets from files: `X_FILE` names the file that contains the secret `X`, as for the image of PostgreSQL.

A file keeps the secret out of the environment, which `docker inspect` shows and every child process inherits. The
`secrets_dir` of pydantic-settings is not used, because it ignores a file that is missing or empty, and every file must
have the name of its setting, although each service has a different RABBITMQ_PASSWORD.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError
from pydantic_settings.sources import EnvSettingsSource
from typing_extensions import override

SUFFIX = "_file"


class SecretFiles(PydanticBaseSettingsSource):
    """The secrets in the files that the variables of another source name."""

    def __init__(self, settings_class: type[BaseSettings], variables: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_class)
        if not isinstance(variables, EnvSettingsSource):
            raise TypeError(f"{variables!r} has no variables")
        self._variables: Mapping[str, str | None] = variables.env_vars  # their names are in lower case

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        file = self._variables.get(field_name + SUFFIX) if is_secret(field.annotation) else None
        if file is None:
            return None, field_name, False
        variable = field_name.upper()
        if field_name in self._variables:
            raise SettingsError(f"{variable}, {variable}{SUFFIX.upper()}: only one of them may be set")
        return _content(f"{variable}{SUFFIX.upper()}", Path(file)), field_name, False

    @override
    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def is_secret(annotation: object) -> bool:
    """Check whether a setting of this type holds a secret, also if it is optional or annotated."""
    return annotation is SecretStr or any(map(is_secret, get_args(annotation)))


def _content(variable: str, file: Path) -> str:
    """Return the content without its last newline, which editors and `echo` append."""
    try:
        content = file.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise SettingsError(f"{variable}: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}: {file} is not a text file in UTF-8") from None
    if not content:
        raise SettingsError(f"{variable}: {file} is empty")
    return content
