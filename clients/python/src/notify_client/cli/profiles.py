"""Profiles: where a gateway is, and the API key for it, in a file that only its owner may read."""

import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notify_client.cli.exit_codes import CommandFailed, ExitCode

DEFAULT = "default"
NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Profile:
    """A gateway, and the API key for it; a gateway with AUTH=off needs none."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    name: str | None = field(default=None, compare=False)
    """The name under which the URL is stored."""


def config_file() -> Path:
    """Return where the profiles are (https://specifications.freedesktop.org/basedir-spec/latest/)."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        return (folder if folder.is_absolute() else Path.home() / ".config") / "notify/config.toml"
    except RuntimeError:
        raise CommandFailed("there is no home folder: set XDG_CONFIG_HOME", ExitCode.USAGE) from None


def read(file: Path) -> dict[str, Profile]:
    """Return the profiles by name; there are none if the file does not exist."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        profiles = content.get("profiles", {})
        return {name: _profile(name, **each) for name, each in profiles.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}", ExitCode.USAGE) from None
    except (ValueError, TypeError, AttributeError):  # the message must not repeat the content, which has keys
        raise CommandFailed(f"{file} is not valid; repair or delete it", ExitCode.USAGE) from None


def _profile(name: str, *, url: object, api_key: object = None) -> Profile:
    if not (isinstance(url, str) and isinstance(api_key, str | None)):
        raise TypeError
    return Profile(url, api_key, name)


def write(file: Path, profiles: Mapping[str, Profile]) -> None:
    """Replace the file atomically. Only its owner may read it."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=file.parent, prefix=file.name)  # its mode is 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write("\n".join(_section(name, profile) for name, profile in profiles.items()))
            Path(draft).replace(file)
        except BaseException:
            Path(draft).unlink()
            raise
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}", ExitCode.USAGE) from None


def _section(name: str, profile: Profile) -> str:
    lines = [f"[profiles.{name}]", f"url = {_quoted(profile.url)}"]
    if profile.api_key is not None:
        lines.append(f"api_key = {_quoted(profile.api_key)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a TOML string. URLs and keys, which have been checked, contain no control characters."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
