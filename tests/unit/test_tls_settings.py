"""TLS settings are checked when a service starts, and each error names its variable."""

import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from notify_common.runtime.settings import load_settings
from notify_database.migrate import MigrationSettings
from notify_gateway.cli import OperatorSettings
from notify_gateway.settings import GatewaySettings
from notify_status_writer.settings import StatusWriterSettings
from notify_telegram_sender.settings import TelegramSenderSettings
from pydantic_settings import BaseSettings

RABBIT, POSTGRES = {"RABBITMQ_TLS": "true"}, {"POSTGRES_SSLMODE": "verify-full"}
WITH_RABBIT: list[type[BaseSettings]] = [
    GatewaySettings, OperatorSettings, StatusWriterSettings, TelegramSenderSettings
]  # fmt: skip
WITH_POSTGRES: list[type[BaseSettings]] = [GatewaySettings, OperatorSettings, StatusWriterSettings, MigrationSettings]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a certificate and its key, another key and a file that is neither."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("client", "other"):
        issued = authority.issue_cert(f"{name}@localhost")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", "client.key", "-out", "encrypted.key"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)  # noqa: S603 - constant
    (tmp_path / "malformed").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(prefix: str, cert: str, key: str) -> dict[str, str]:
    return {f"{prefix}_CERT_FILE": cert, f"{prefix}_KEY_FILE": key}


def invalid(prefix: str, on: dict[str, str]) -> list[tuple[dict[str, str], str]]:
    """Return invalid settings, each with the variable that the error must name."""
    ca, cert, key = (f"{prefix}_{name}_FILE" for name in ("CA", "CERT", "KEY"))
    return [
        ({ca: "ca.pem"}, ca),
        (own(prefix, "client.pem", "client.key"), cert),
        *(({**on, ca: file}, ca) for file in ("missing", "malformed", "empty", ".", "client.key")),
        ({**on, cert: "client.pem"}, key),
        ({**on, key: "client.key"}, cert),
        ({**on, **own(prefix, "missing", "client.key")}, cert),
        ({**on, **own(prefix, "client.pem", "missing")}, key),
        *(({**on, **own(prefix, "client.pem", file)}, key) for file in ("other.key", "malformed", "encrypted.key")),
        ({**on, **own(prefix, "malformed", "client.key")}, cert),
    ]


CASES = [
    *((settings, *case) for settings in WITH_RABBIT for case in invalid("RABBITMQ", RABBIT)),
    *((settings, *case) for settings in WITH_POSTGRES for case in invalid("POSTGRES", POSTGRES)),
    *(
        (settings, case, variable)
        for settings in WITH_POSTGRES
        for case, variable in (
            ({"POSTGRES_SSLMODE": "allow"}, "POSTGRES_SSLMODE"),
            ({"POSTGRES_SSLMODE": "verify-ca"}, "POSTGRES_SSLMODE"),
            ({"POSTGRES_SSLMODE": "require", "POSTGRES_CA_FILE": "ca.pem"}, "POSTGRES_CA_FILE"),
            ({"POSTGRES_SSLMODE": "prefer", **own("POSTGRES", "client.pem", "client.key")}, "POSTGRES_CERT_FILE"),
        )
    ),
    (
        GatewaySettings,
        {**RABBIT, "RABBITMQ_MANAGEMENT_URL": "http://rabbit.example.org:15672"},
        "RABBITMQ_MANAGEMENT_URL",
    ),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("settings", "given", "variable"), CASES)
def test_invalid_tls_settings_stop_the_service_with_an_error_that_names_the_variable(
    settings: type[BaseSettings], given: dict[str, str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=rf"^Invalid settings:\n  .*\b{variable}\b"):
        load_settings(settings)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("prefix", ["RABBITMQ", "POSTGRES"])
def test_complete_tls_settings_are_accepted(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = RABBIT if prefix == "RABBITMQ" else POSTGRES
    for given in ({}, {f"{prefix}_CA_FILE": "ca.pem"}, own(prefix, "client.pem", "client.key")):
        for name, value in {**on, **given}.items():
            monkeypatch.setenv(name, value)
        load_settings(GatewaySettings)


@pytest.mark.usefixtures("folder")
def test_amqp_url_names_the_certificate_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**RABBIT, "RABBITMQ_CA_FILE": "ca.pem", **own("RABBITMQ", "client.pem", "client.key")}.items():
        monkeypatch.setenv(name, value)
    url = load_settings(TelegramSenderSettings).amqp_url()
    assert url == (
        "amqps://guest:guest@localhost:5672/%2F?heartbeat=10&cafile=ca.pem&certfile=client.pem&keyfile=client.key"
    )


def test_nothing_changes_if_tls_is_not_set() -> None:
    settings = GatewaySettings()
    assert settings.amqp_url() == "amqp://guest:guest@localhost:5672/%2F?heartbeat=10"
    assert settings.postgres_sslmode is None


REMOTE = {"RABBITMQ_HOST": "rabbit.example.org", "POSTGRES_HOST": "10.1.2.3"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (REMOTE, ["POSTGRES_SSLMODE", "RABBITMQ_TLS"]),
        ({**REMOTE, "RABBITMQ_TLS": "false", "POSTGRES_SSLMODE": "disable"}, []),  # it was chosen
        ({**REMOTE, "RABBITMQ_TLS": "true", "POSTGRES_SSLMODE": "verify-full"}, []),
        ({"RABBITMQ_HOST": "rabbitmq", "POSTGRES_HOST": "/run/postgresql"}, []),
        ({"RABBITMQ_HOSTS": "a,b", "POSTGRES_HOSTS": "a,[::1]:1"}, []),
        (
            {"RABBITMQ_HOSTS": "a,b.example.org", "POSTGRES_HOSTS": "a,10.1.2.3:1"},
            ["POSTGRES_SSLMODE", "RABBITMQ_TLS"],
        ),
        ({"RABBITMQ_HOST": "127.0.0.1", "POSTGRES_HOST": "::1"}, []),
        ({}, []),
    ],
)
def test_plain_text_connections_to_other_machines_are_found(
    given: dict[str, str], named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert sorted(load_settings(StatusWriterSettings).plain_text()) == named


def test_plain_text_connections_to_other_machines_are_logged_by_every_process() -> None:
    code = (
        "import asyncio\n"
        "from notify_common.runtime.process import run\n"
        "from notify_telegram_sender.settings import TelegramSenderSettings as Settings\n"
        "run(lambda: asyncio.sleep(0), Settings(rabbitmq_host='rabbit.example.org'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - constant
    assert "RABBITMQ_TLS" in done.stderr
