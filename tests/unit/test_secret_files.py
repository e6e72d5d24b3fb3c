"""Every secret may come from a file, which `X_FILE` names."""

from pathlib import Path

import pytest
from notify_common.runtime.secret_files import is_secret
from notify_common.runtime.settings import EnvironmentSettings, load_settings
from notify_database.migrate import MigrationSettings
from notify_email_sender.settings import EmailSenderSettings
from notify_gateway.cli import OperatorSettings
from notify_gateway.settings import GatewaySettings
from notify_local.stack import ExternalServers, GatewayOptions
from notify_status_writer.settings import StatusWriterSettings
from notify_telegram_sender.settings import TelegramSenderSettings
from notify_webhook_sender.settings import WebhookSenderSettings
from support.servers import PROJECT

VALUES = {
    "RABBITMQ_PASSWORD": "p$ss wörd",
    "POSTGRES_PASSWORD": " surrounded by spaces ",
    "POSTGRES_ADMIN_PASSWORD": "of the administrator",
    "POSTGRES_GATEWAY_PASSWORD": "of the gateway",
    "POSTGRES_STATUS_WRITER_PASSWORD": "of the status writer",
    "BOOTSTRAP_API_KEY": "k" * 43,
    "TELEGRAM_BOT_TOKEN": "123456:ABC-DEF",
    "SMTP_PASSWORD": "two\nlines",
    "WEBHOOK_SECRETS": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}
ALL: list[type[EnvironmentSettings]] = [
    GatewaySettings, OperatorSettings, StatusWriterSettings, MigrationSettings, TelegramSenderSettings,
    EmailSenderSettings, WebhookSenderSettings, GatewayOptions, ExternalServers,
]  # fmt: skip


def secrets_of(settings: type[EnvironmentSettings]) -> set[str]:
    return {name.upper() for name, field in settings.model_fields.items() if is_secret(field.annotation)}


def read(settings: EnvironmentSettings, variable: str) -> str | None:
    secret = getattr(settings, variable.lower())
    return None if secret is None else str(secret.get_secret_value())


def refusal(settings: type[EnvironmentSettings] = StatusWriterSettings) -> str:
    with pytest.raises(SystemExit) as stopped:
        load_settings(settings)
    return str(stopped.value)


def test_every_secret_setting_is_found() -> None:
    found = set().union(*map(secrets_of, ALL))
    assert found == {*VALUES, "EMAIL_DKIM_KEY"}
    page = (PROJECT / "docs/settings.md").read_text()
    [listed] = [line for line in page.splitlines() if line.startswith("Secrets:")]
    assert {name.strip("`") for name in listed.removeprefix("Secrets: ").rstrip(".").split(", ")} == found


@pytest.mark.parametrize("settings", ALL)
def test_every_secret_may_come_from_a_file(
    settings: type[EnvironmentSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in secrets_of(settings) & set(VALUES):
        (tmp_path / variable).write_text(f"{VALUES[variable]}\n")
        monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / variable))
    loaded = load_settings(settings)
    assert all(read(loaded, variable) == VALUES[variable] for variable in secrets_of(settings) & set(VALUES))


@pytest.mark.parametrize(
    ("content", "secret"), [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a ")]
)
def test_only_one_trailing_newline_is_stripped(
    content: str, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_bytes(content.encode())
    monkeypatch.setenv("RABBITMQ_PASSWORD_FILE", str(tmp_path / "password"))
    assert read(load_settings(StatusWriterSettings), "RABBITMQ_PASSWORD") == secret


def test_both_forms_are_refused_with_an_error_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("one")
    monkeypatch.setenv("RABBITMQ_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("RABBITMQ_PASSWORD", "another")
    assert refusal() == "Invalid settings:\n  RABBITMQ_PASSWORD, RABBITMQ_PASSWORD_FILE: only one of them may be set"
    monkeypatch.setenv("RABBITMQ_PASSWORD", "")  # counts as not set
    assert read(load_settings(StatusWriterSettings), "RABBITMQ_PASSWORD") == "one"


def test_unusable_file_is_refused_with_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty := tmp_path / "empty").touch()
    (newline := tmp_path / "newline").write_text("\n")
    (binary := tmp_path / "binary").write_bytes(b"\xff\xfe")
    for file, problem in {
        tmp_path / "missing": "cannot be read: No such file or directory",
        tmp_path: "cannot be read: Is a directory",
        tmp_path / "empty" / "file": "cannot be read: Not a directory",
        empty: "is empty",
        newline: "is empty",
        binary: "is not a text file in UTF-8",
    }.items():
        monkeypatch.setenv("POSTGRES_PASSWORD_FILE", str(file))
        assert refusal() == f"Invalid settings:\n  POSTGRES_PASSWORD_FILE: {file} {problem}"


def test_the_environment_takes_precedence_over_dotenv_in_either_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_text("from the file of .env")
    (tmp_path / "other").write_text("from the file of the environment")
    (tmp_path / ".env").write_text("RABBITMQ_PASSWORD_FILE=one\n")
    assert read(load_settings(StatusWriterSettings), "RABBITMQ_PASSWORD") == "from the file of .env"
    monkeypatch.setenv("RABBITMQ_PASSWORD", "from the environment")
    assert read(load_settings(StatusWriterSettings), "RABBITMQ_PASSWORD") == "from the environment"
    monkeypatch.delenv("RABBITMQ_PASSWORD")
    monkeypatch.setenv("RABBITMQ_PASSWORD_FILE", "other")
    (tmp_path / ".env").write_text("RABBITMQ_PASSWORD=from .env\n")
    assert read(load_settings(StatusWriterSettings), "RABBITMQ_PASSWORD") == "from the file of the environment"


def test_file_is_validated_like_a_value_and_its_content_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, content in {"BOOTSTRAP_API_KEY": "too-short", "RABBITMQ_PASSWORD": "change-me-7"}.items():
        (tmp_path / variable).write_text(content)
        with monkeypatch.context() as environment:
            environment.setenv(f"{variable}_FILE", str(tmp_path / variable))
            assert f"{variable}: " in (message := refusal(GatewaySettings))
            assert content not in message


def test_only_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like any unknown variable, RABBITMQ_USER_FILE is ignored."""
    monkeypatch.setenv("RABBITMQ_USER_FILE", str(tmp_path / "missing"))
    assert load_settings(StatusWriterSettings).rabbitmq_user == "guest"
