import re
import subprocess
import sys
from pathlib import Path

import pytest
from notify_common.runtime.settings import ServiceSettings, load_settings
from notify_database.maintenance import MaintenanceSettings
from notify_database.migrate import MigrationSettings
from notify_email_sender.settings import EmailSenderSettings
from notify_gateway.cli import OperatorSettings
from notify_gateway.settings import GatewaySettings
from notify_status_writer.settings import StatusWriterSettings
from notify_telegram_sender.settings import TelegramSenderSettings
from notify_webhook_sender.settings import WebhookSenderSettings
from pydantic import ValidationError
from pydantic_settings import BaseSettings

ALL: list[type[BaseSettings]] = [
    GatewaySettings, TelegramSenderSettings, EmailSenderSettings, StatusWriterSettings
]  # fmt: skip
SMTP = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail.example.org", "EMAIL_FROM": "Shop <a@example.org>"}


def test_defaults_remain_backward_compatible() -> None:
    telegram, email, gateway = TelegramSenderSettings(), EmailSenderSettings(), GatewaySettings()
    assert (telegram.telegram_sleep, email.email_sleep) == (0.2, 1.0)
    assert (telegram.max_retries, telegram.retry_delay, telegram.error_probability) == (3, 1.0, 0.1)
    assert gateway.app_port == 8080


@pytest.mark.parametrize("settings", ALL)
def test_service_reads_dotenv_and_ignores_unknown_variables(
    settings: type[BaseSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LOG_LEVEL=debug\nRABBITMQ_PORT=1234\nRABBITMQ_ADMIN_PASSWORD=another's\n")
    loaded = load_settings(settings).model_dump()
    assert (loaded["log_level"], loaded["rabbitmq_port"]) == ("DEBUG", 1234)


@pytest.mark.parametrize("probability", ["0", "1"])
def test_error_probability_may_be_0_or_1(probability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERROR_PROBABILITY", probability)
    assert load_settings(TelegramSenderSettings).error_probability == float(probability)


@pytest.mark.parametrize(
    ("settings", "variable", "value"),
    [
        (TelegramSenderSettings, "ERROR_PROBABILITY", "1.5"),
        (TelegramSenderSettings, "TELEGRAM_SLEEP", "soon"),
        (EmailSenderSettings, "MAX_RETRIES", "0"),
        (EmailSenderSettings, "EMAIL_LIST_UNSUBSCRIBE", "https://example.org/u"),
        (EmailSenderSettings, "EMAIL_LIST_UNSUBSCRIBE", "<http://example.org>"),
        (EmailSenderSettings, "EMAIL_DKIM_KEY", "-----BEGIN RSA PRIVATE KEY-----"),
        (EmailSenderSettings, "EMAIL_DKIM_SELECTOR", "a..b"),
        (WebhookSenderSettings, "WEBHOOK_SECRETS", "\t"),
        (WebhookSenderSettings, "WEBHOOK_SECRETS", "whsec_dG9vIHNob3J0"),
        (WebhookSenderSettings, "WEBHOOK_ALLOWED_NETWORKS", "10.0.0.0/8,127.0.0.0/8"),
        (GatewaySettings, "APP_PORT", "80800"),
        (GatewaySettings, "BOOTSTRAP_API_KEY", "a-key-of-42-characters-which-is-one-too-fe"),
        (GatewaySettings, "BOOTSTRAP_API_KEY", "x" * 201),
        (GatewaySettings, "BOOTSTRAP_API_KEY", "a key of more than 43 characters, but with spaces"),
        (GatewaySettings, "BOOTSTRAP_API_KEY", "ä" * 43),
        (GatewaySettings, "TRUSTED_PROXIES", "10.0.0.1/8"),
        (GatewaySettings, "TRUSTED_PROXIES", "10.0.0.0/8, proxy"),
        (GatewaySettings, "ALLOWED_HOSTS", "https://notify.example.org"),
        (GatewaySettings, "ALLOWED_HOSTS", "a.example.org,b.example.org"),
        (GatewaySettings, "POSTGRES_SCHEMA", 'x"; DROP'),
        (StatusWriterSettings, "LOG_LEVEL", "loud"),
        (MigrationSettings, "POSTGRES_GATEWAY_USER", 'x"; DROP'),
    ],
)
def test_invalid_value_stops_the_service_with_an_error_that_names_the_variable(
    settings: type[BaseSettings], variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=variable) as stopped:
        load_settings(settings)
    assert value not in str(stopped.value)


@pytest.mark.parametrize("settings", ALL)
def test_secrets_are_hidden_in_repr(settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_PASSWORD", "open-sesame")
    monkeypatch.setenv("POSTGRES_PASSWORD", "open-sesame")
    assert "open-sesame" not in repr(settings())


def test_amqp_url_escapes_special_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_PASSWORD", "p@ss/w:rd")
    monkeypatch.setenv("RABBITMQ_VHOST", "/my vhost")
    assert GatewaySettings().amqp_url().startswith("amqp://guest:p%40ss%2Fw%3Ard@localhost:5672/%2Fmy%20vhost")


@pytest.mark.parametrize(
    ("settings", "given", "variable"),
    [
        (EmailSenderSettings, {"EMAIL_PROVIDER": "smtp", "EMAIL_FROM": "a@example.org"}, "SMTP_HOST"),
        (EmailSenderSettings, {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail"}, "EMAIL_FROM"),
        (EmailSenderSettings, {"EMAIL_FROM": "nobody"}, "EMAIL_FROM"),
        (EmailSenderSettings, {"EMAIL_PROVIDER": "pigeon"}, "EMAIL_PROVIDER"),
        (EmailSenderSettings, {**SMTP, "SMTP_USER": "a"}, "SMTP_PASSWORD"),
        (EmailSenderSettings, {**SMTP, "SMTP_USER": "a", "SMTP_PASSWORD": "b", "SMTP_TLS": "none"}, "SMTP_TLS"),
        (EmailSenderSettings, {**SMTP, "EMAIL_LIST_UNSUBSCRIBE": "<mailto:a>\r\nBcc: b"}, "EMAIL_LIST_UNSUBSCRIBE"),
        (TelegramSenderSettings, {"TELEGRAM_PROVIDER": "bot_api"}, "TELEGRAM_BOT_TOKEN"),
        (TelegramSenderSettings, {"TELEGRAM_BOT_TOKEN": "no token"}, "TELEGRAM_BOT_TOKEN"),
    ],
)
def test_incomplete_provider_settings_stop_the_service_with_an_error_that_names_the_variable(
    settings: type[BaseSettings], given: dict[str, str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=variable):
        load_settings(settings)


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMTP_HOST", "SMTP_PORT", "SMTP_PASSWORD", "EMAIL_FROM", "SMTP_CA_FILE"):
        monkeypatch.setenv(name, "")
    settings = load_settings(EmailSenderSettings)
    assert (settings.smtp_host, settings.smtp_port, settings.smtp_password, settings.email_from) == (None,) * 4


def test_unauthenticated_api_on_a_public_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="AUTH"):
        GatewaySettings.model_validate({"auth": "off", "app_host": "0.0.0.0"})  # noqa: S104 - refused
    for accepted in ({"app_host": "127.0.0.1"}, {"app_host": "0.0.0.0", "allow_insecure": "1"}):  # noqa: S104 - accepted
        GatewaySettings.model_validate({"auth": "off", **accepted})


BOTH_PASSWORDS = ["POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"]
SECRETS: list[tuple[type[ServiceSettings], list[str]]] = [
    (GatewaySettings, [*BOTH_PASSWORDS, "BOOTSTRAP_API_KEY"]),
    (OperatorSettings, BOTH_PASSWORDS),
    (StatusWriterSettings, BOTH_PASSWORDS),
    (
        MigrationSettings,
        [
            "POSTGRES_PASSWORD",
            "POSTGRES_ADMIN_PASSWORD",
            "POSTGRES_GATEWAY_PASSWORD",
            "POSTGRES_STATUS_WRITER_PASSWORD",
        ],
    ),
    (MaintenanceSettings, ["POSTGRES_PASSWORD"]),
    (TelegramSenderSettings, ["RABBITMQ_PASSWORD"]),
    (EmailSenderSettings, ["RABBITMQ_PASSWORD", "SMTP_PASSWORD"]),
    (WebhookSenderSettings, ["RABBITMQ_PASSWORD"]),
]
EXAMPLE_SECRET = "change-me-because-everyone-can-read-this-value-1"


@pytest.mark.parametrize(("settings", "secrets"), SECRETS)
def test_example_secrets_stop_every_service_unless_insecure_settings_are_allowed(
    settings: type[ServiceSettings], secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in secrets:
        monkeypatch.setenv(secret, EXAMPLE_SECRET)
    with pytest.raises(SystemExit, match="make env") as stopped:
        load_settings(settings)
    assert all(secret in str(stopped.value) for secret in secrets)
    assert EXAMPLE_SECRET not in str(stopped.value)
    monkeypatch.setenv("ALLOW_INSECURE", "1")
    assert set(load_settings(settings).example_secrets()) == set(secrets)


@pytest.mark.parametrize(("settings", "secrets"), SECRETS)
def test_a_single_example_secret_stops_the_service(
    settings: type[ServiceSettings], secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in secrets:
        with monkeypatch.context() as environment:
            environment.setenv(secret, EXAMPLE_SECRET)
            with pytest.raises(SystemExit, match=rf"^Invalid settings:\n  {secret}: "):
                load_settings(settings)


def test_allowed_example_secrets_are_logged_by_every_process() -> None:
    code = (
        "import asyncio\n"
        "from notify_common.runtime.process import run\n"
        "from notify_status_writer.settings import StatusWriterSettings as Settings\n"
        f"settings = Settings(allow_insecure=True, rabbitmq_password='{EXAMPLE_SECRET}')\n"
        "run(lambda: asyncio.sleep(0), settings)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - constant
    assert "RABBITMQ_PASSWORD" in done.stderr
    assert EXAMPLE_SECRET not in done.stderr


@pytest.mark.parametrize("url", ["http://bots.example.org/", "http://10.1.2.3:8081/", "http://127.0.0.1.example.org/"])
def test_bot_token_is_sent_unencrypted_only_to_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELEGRAM_API_URL", url)
    assert str(load_settings(TelegramSenderSettings).telegram_api_url) == url  # the simulator does not use it
    monkeypatch.setenv("TELEGRAM_PROVIDER", "bot_api")
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABC-DEF")
    with pytest.raises(SystemExit, match="TELEGRAM_API_URL"):
        load_settings(TelegramSenderSettings)
    monkeypatch.setenv("ALLOW_INSECURE", "1")
    assert str(load_settings(TelegramSenderSettings).telegram_api_url) == url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_bot_api_server_on_this_machine_needs_no_encryption(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELEGRAM_PROVIDER", "bot_api")
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABC-DEF")
    monkeypatch.setenv("TELEGRAM_API_URL", f"http://{host}:8081/")
    assert load_settings(TelegramSenderSettings).telegram_api_url.port == 8081


@pytest.mark.parametrize("same", ["POSTGRES_USER", "POSTGRES_GATEWAY_USER", "POSTGRES_STATUS_WRITER_USER"])
@pytest.mark.parametrize("name", ["boss", "notify_owner", "reader"])
def test_postgresql_logins_must_differ(same: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"POSTGRES_USER", "POSTGRES_GATEWAY_USER", "POSTGRES_STATUS_WRITER_USER"} - {same}
    users = {"POSTGRES_ADMIN_USER": "boss", **dict(zip(sorted(others), ("reader", "another"), strict=True))}
    for variable, user in {**users, same: name}.items():
        monkeypatch.setenv(variable, user)
    with pytest.raises(SystemExit, match="must differ"):
        load_settings(MigrationSettings)


def test_rabbitmq_nodes_come_from_either_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(GatewaySettings().rabbitmq_nodes()) == "localhost:5672"
    monkeypatch.setenv("RABBITMQ_HOSTS", "rabbit-1,rabbit-2:5673")
    monkeypatch.setenv("RABBITMQ_PORT", "5671")
    monkeypatch.setenv("RABBITMQ_HOST", "")  # as Compose passes a variable that is not set
    nodes = load_settings(GatewaySettings).rabbitmq_nodes()
    assert sorted(map(str, nodes.in_turn())) == ["rabbit-1:5671", "rabbit-2:5673"]


def test_postgresql_servers_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(MigrationSettings().postgres_servers()) == "localhost:5432"
    monkeypatch.setenv("POSTGRES_HOSTS", "pg-2,pg-1:5433,pg-3")
    monkeypatch.setenv("POSTGRES_PORT", "6432")
    assert str(load_settings(MigrationSettings).postgres_servers()) == "pg-2:6432, pg-1:5433, pg-3:6432"


def test_amqp_url_names_the_node_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_HOSTS", "rabbit-1:5672,[::1]:5673")
    monkeypatch.setenv("RABBITMQ_HEARTBEAT", "7")
    settings = GatewaySettings()
    nodes = settings.rabbitmq_nodes()
    for node in nodes.in_turn():
        assert settings.amqp_url() == f"amqp://guest:guest@{node}/%2F?heartbeat=7"
        assert settings.amqp_url(node=node) == settings.amqp_url()
        nodes.failed(node)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"RABBITMQ_HOST": "a", "RABBITMQ_HOSTS": "a:5672,b:5672"},
            "RABBITMQ_HOST and RABBITMQ_HOSTS: set only one of them",
        ),
        (
            {"RABBITMQ_MANAGEMENT_URL": "http://a:15672", "RABBITMQ_MANAGEMENT_HOSTS": "a,b"},
            "RABBITMQ_MANAGEMENT_URL and RABBITMQ_MANAGEMENT_HOSTS: set only one of them",
        ),
        ({"RABBITMQ_HOSTS": "a:5672;b:5672"}, "RABBITMQ_HOSTS: must be addresses such as"),
        (
            {"POSTGRES_HOST": "a", "POSTGRES_HOSTS": "a:5432,b:5432"},
            "POSTGRES_HOST and POSTGRES_HOSTS: set only one of them",
        ),
        ({"POSTGRES_HOSTS": "/run/postgresql"}, "POSTGRES_HOSTS: must be addresses such as"),
    ],
)
def test_unclear_hosts_are_refused(given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=re.escape(message)):
        load_settings(GatewaySettings)


def test_management_hosts_are_asked_as_rabbitmq_tls_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_MANAGEMENT_HOSTS", "a,b:1")
    assert list(map(str, GatewaySettings().management_urls())) == ["http://a:15672/", "http://b:1/"]
    monkeypatch.setenv("RABBITMQ_TLS", "true")
    assert list(map(str, GatewaySettings().management_urls())) == ["https://a:15671/", "https://b:1/"]
