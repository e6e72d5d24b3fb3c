"""`make env`: create what Docker Compose needs, a settings file and a folder of random secrets.

What exists is kept. A secret that an older version stored in the settings file is copied into the folder.

Only the standard library is used, because Docker Compose needs no virtual environment.
"""

import argparse
import re
import secrets
import sys
from pathlib import Path

from notify_local.dotenv_values import UnclearValue, dotenv_values

TEMPLATE = Path(__file__).parents[4] / ".env.example"
DEFAULT_FOLDER = "./secrets"
SECRET_BYTES = 32  # 43 characters of base64url
# Each secret is a file of that name. docker-compose.yml mounts it into the containers that need it.
DRAWN = (
    "postgres_password",
    "postgres_owner_password",
    "postgres_gateway_password",
    "postgres_status_writer_password",
    "postgres_replication_password",
    "patroni_password",
    "rabbitmq_admin_password",
    "rabbitmq_gateway_password",
    "rabbitmq_telegram_sender_password",
    "rabbitmq_email_sender_password",
    "rabbitmq_webhook_sender_password",
    "rabbitmq_status_writer_password",
    "rabbitmq_erlang_cookie",
    "bootstrap_api_key",
)
PROVIDERS = ("telegram_bot_token", "smtp_password", "email_dkim_key", "webhook_secrets")
# The containers have another user, who must be able to read the files. On the host, their folder protects them: only
# its owner can open it.
FOLDER_MODE, FILE_MODE, ENV_FILE_MODE = 0o700, 0o644, 0o600


def main() -> None:
    """Create the files that are missing, and print what was done."""
    parser = argparse.ArgumentParser(prog="make env", description="Create the settings and secrets for Docker Compose.")
    parser.add_argument("file", type=Path, nargs="?", default=Path(".env"))
    file: Path = parser.parse_args().file
    try:
        print(_create(file))
    except UnclearValue as error:
        sys.exit(
            f"{file}: {error} has quotes or escapes that are not understood. Nothing was changed; write its value "
            f"into {str(error).lower()} in the folder of secrets yourself."
        )
    except OSError as error:
        sys.exit(f"{error.filename} cannot be created: {error.strerror}")


def _create(file: Path) -> str:
    """Create the missing files and return a report."""
    existing = dotenv_values(file.read_text(encoding="utf-8"), {"SECRETS_DIR"}) if file.exists() else None
    folder = _folder(file, existing)
    missing = [name for name in (*DRAWN, *PROVIDERS) if not (folder / name).exists()]
    stored = {} if existing is None else dotenv_values(file.read_text(encoding="utf-8"), {*map(str.upper, missing)})
    copied = [name for name in missing if name.upper() in stored]
    drawn = [name for name in missing if name in DRAWN and name not in copied]
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        sys.exit(f"Others can open {folder}. Make it private first: chmod 700 {folder}")
    for name in copied:
        _write(folder / name, stored[name.upper()] + "\n", FILE_MODE)
    for name in drawn:
        _write(folder / name, secrets.token_urlsafe(SECRET_BYTES) + "\n", FILE_MODE)
    if existing is None:
        _write(file, _filled(TEMPLATE.read_text(encoding="utf-8"), folder), ENV_FILE_MODE)
    return "\n".join(_report(file, folder, drawn=drawn, copied=copied, created=existing is None))


def _folder(file: Path, existing: dict[str, str] | None) -> Path:
    """Return the folder of secrets, which Compose finds relative to the project unless its path is absolute."""
    if existing is not None:
        return Path(existing.get("SECRETS_DIR", DEFAULT_FOLDER))
    return Path(DEFAULT_FOLDER) if file == Path(".env") else file.parent.resolve() / "secrets"


def _filled(template: str, folder: Path) -> str:
    """Return the template with `folder` in place of the default folder. Quotes are only used if they are needed."""

    def assignment(match: re.Match[str]) -> str:
        path = f"{folder}{match['file']}"
        return f"={path}" if re.fullmatch(r"[\w./-]+", path) else f"='{path}'"

    if folder == Path(DEFAULT_FOLDER):
        return template
    return re.sub(rf"(?<=\w)={re.escape(DEFAULT_FOLDER)}(?P<file>.*)$", assignment, template, flags=re.MULTILINE)


def _write(file: Path, content: str, mode: int) -> None:
    """Create the file, which must not exist, with exactly these permissions."""
    file.touch(mode=ENV_FILE_MODE, exist_ok=False)
    try:
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)  # whatever the umask is
    except OSError:
        file.unlink()  # otherwise the next run would keep an incomplete file
        raise


def _report(file: Path, folder: Path, *, drawn: list[str], copied: list[str], created: bool) -> list[str]:
    report = [f"Created {file}. Only you can read it." if created else f"{file} exists and was not changed."]
    if drawn:
        report.append(f"Created random secrets in {folder}, which only you can open: {', '.join(drawn)}")
    if copied:
        report.append(f"Copied from {file} to {folder}: {', '.join(map(str.upper, copied))}")
    if named := [f"{name.upper()}_FILE={folder / name}" for name in copied if name in PROVIDERS]:
        report += [f"Add to {file}:", *(f"  {line}" for line in named)]
    if not drawn and not copied:
        report.append(
            f"Every secret exists in {folder} and was not changed. To get a new one, move its file away first."
        )
    if created:
        report += [
            "Every request needs the API key:",
            f"  KEY=$(cat {folder / 'bootstrap_api_key'})",
            '  curl http://127.0.0.1:8080/v1/notifications -H "Authorization: Bearer $KEY"',
        ]
    return report


if __name__ == "__main__":
    main()
