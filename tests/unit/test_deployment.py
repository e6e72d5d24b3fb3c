"""Values must agree between the settings, docs/settings.md, Compose, .env.example and RabbitMQ's definitions."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.sending.service import ACK_TIME, SenderSettings
from notify_database.migrate import MigrationSettings
from notify_gateway.settings import GatewaySettings
from notify_local.rabbitmq import DEAD_LETTER_TIMEOUT
from notify_local.stack import SERVICES as RUNNING
from notify_status_writer.settings import StatusWriterSettings
from pydantic_settings import BaseSettings
from support.servers import PROJECT


def settings_of(channel: Channel) -> type[SenderSettings]:
    module = import_module(f"notify_{channel}_sender.settings")
    settings: type[SenderSettings] = getattr(module, f"{channel.title()}SenderSettings")
    return settings


SERVICES: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    **{f"{channel}_sender": settings_of(channel) for channel in Channel},
    "status_writer": StatusWriterSettings,
    "migrate": MigrationSettings,
}
# Compose does not pass these: images set the address and port, and containers do not store simulated messages.
IN_THE_IMAGE = {"APP_HOST", "APP_PORT", "HEALTH_HOST", "HEALTH_PORT", "SIMULATOR_FOLDER"}
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
EXAMPLE = dict(
    line.split("=", 1) for line in (PROJECT / ".env.example").read_text().splitlines() if line and line[0] != "#"
)
OBSERVERS = {name for name, service in COMPOSE["services"].items() if "profiles" in service}
DEFINITIONS: dict[str, list[dict[str, Any]]] = json.loads((PROJECT / "deploy/rabbitmq/definitions.json").read_text())


def variables(settings: type[BaseSettings]) -> set[str]:
    return {name.upper() for name in settings.model_fields}


def table() -> dict[str, str]:
    """Return the documented default of each variable in docs/settings.md."""
    page = (PROJECT / "docs/settings.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a variable is listed twice"
    return {name: default.strip("`") for name, default in rows}


def test_settings_page_lists_exactly_the_existing_settings() -> None:
    assert set(table()) == set().union(*map(variables, SERVICES.values()))


def test_settings_page_states_the_defaults() -> None:
    for settings in SERVICES.values():
        for name, field in settings.model_fields.items():
            default = getattr(field.default, "get_secret_value", lambda value=field.default: value)()
            documented = table()[name.upper()]
            assert documented == "per service" or documented.lower() == str(default).removesuffix(".0").lower(), name


@pytest.mark.parametrize("service", SERVICES)
def test_compose_passes_each_service_exactly_its_settings(service: str) -> None:
    given = set(COMPOSE["services"][service]["environment"])
    assert given == {name for name in variables(SERVICES[service]) - IN_THE_IMAGE if not name.endswith("_CA_FILE")}


def test_env_example_lists_exactly_the_variables_that_compose_uses() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (PROJECT / "docker-compose.yml").read_text()))
    assert used == set(EXAMPLE)


def test_env_example_and_compose_agree_on_the_defaults() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    for name, value in EXAMPLE.items():
        if value and name.endswith(("PASSWORD", "API_KEY")):
            assert f"${{{name}:?" in text
            assert "change-me" in value
        else:
            assert f"${{{name}:-{value}}}" in text
            if name in table():
                assert table()[name] == (value or "none")


def test_every_container_that_checks_secrets_gets_the_switch_that_allows_the_examples() -> None:
    for service in (*SERVICES, "rabbitmq"):
        assert COMPOSE["services"][service]["environment"]["ALLOW_INSECURE"] == "${ALLOW_INSECURE:-false}"


def test_allowing_insecure_settings_is_all_that_the_example_file_needs() -> None:
    """Also with the example's secrets, each value must have the form that the gateway requires of a secret."""
    example = {name.lower(): value for name, value in EXAMPLE.items() if value}
    assert GatewaySettings.model_validate({**example, "allow_insecure": "1"}).example_secrets() == [
        "POSTGRES_PASSWORD",
        "BOOTSTRAP_API_KEY",
    ]


def start_rabbitmq(**environment: str) -> subprocess.CompletedProcess[str]:
    script = PROJECT / "deploy/rabbitmq/start.sh"
    return subprocess.run(  # noqa: S603 - ours
        ["bash", script],  # noqa: S607 - found on PATH
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("allow_insecure", ["false", "0", ""])
def test_rabbitmq_does_not_start_with_example_passwords(allow_insecure: str) -> None:
    passwords = {name: value for name, value in EXAMPLE.items() if re.fullmatch("RABBITMQ_.*_PASSWORD", name)}
    done = start_rabbitmq(**passwords, ALLOW_INSECURE=allow_insecure)
    assert done.returncode == 1
    assert set(re.findall("RABBITMQ_[A-Z_]+", done.stderr)) == set(passwords)
    assert "make env" in done.stderr
    [one, *others] = passwords
    done = start_rabbitmq(**dict.fromkeys(others, "secret"), **{one: passwords[one]})
    assert done.returncode == 1
    assert re.findall("RABBITMQ_[A-Z_]+", done.stderr) == [one]


def make_env(file: Path) -> subprocess.CompletedProcess[str]:
    # The interpreter gets no virtual environment, because `make env` must not need one.
    interpreter = Path(sys.executable).resolve()
    return subprocess.run(  # noqa: S603 - ours
        ["make", "--directory", PROJECT, "env", f"PYTHON={interpreter} -S", f"FILE={file}"],  # noqa: S607 - found on PATH
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_make_env_writes_a_private_file_with_random_secrets_and_never_overwrites_it(tmp_path: Path) -> None:
    file, other = tmp_path / "one.env", tmp_path / "two.env"
    for each in (file, other):
        done = make_env(each)
        assert (done.returncode, done.stderr) == (0, "")
        assert "BOOTSTRAP_API_KEY" in done.stdout
        assert each.stat().st_mode & 0o777 == 0o600
    settings, others = (
        dict(line.split("=", 1) for line in each.read_text().splitlines() if line and line[0] != "#")
        for each in (file, other)
    )
    assert set(settings) == set(EXAMPLE)
    secrets = {name for name, value in EXAMPLE.items() if "change-me" in value}
    assert {name: value for name, value in settings.items() if name not in secrets} == {
        name: value for name, value in EXAMPLE.items() if name not in secrets
    }
    # Base64url without padding: 43 characters hold 32 bytes.
    drawn = [each[name] for each in (settings, others) for name in secrets]
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", secret) for secret in drawn)
    assert len(set(drawn)) == len(drawn)
    GatewaySettings.model_validate({name.lower(): value for name, value in settings.items() if value})
    before = file.read_text()
    done = make_env(file)
    assert done.returncode != 0
    assert f"{file} exists" in done.stderr
    assert file.read_text() == before


@pytest.mark.parametrize("service", RUNNING)
def test_image_declares_its_services_version_and_ports(service: str) -> None:
    folder = PROJECT / "services" / service
    package = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    dockerfile = (folder / "Dockerfile").read_text()
    assert f"ARG VERSION={package['version']}\n" in dockerfile
    fields = SERVICES[service].model_fields
    ports = [name for name in ("app_port", "health_port") if name in fields]
    assert all(re.search(rf"\b{port.upper()}={fields[port].default}\b", dockerfile) for port in ports)


def test_sender_grace_period_is_longer_than_a_provider_call() -> None:
    longest = SenderSettings.model_fields["provider_timeout"].default + ACK_TIME
    assert int(EXAMPLE["SENDER_STOP_GRACE_PERIOD"].removesuffix("s")) > longest


def test_every_container_has_memory_and_log_limits() -> None:
    for definition in COMPOSE["services"].values():
        assert definition["mem_limit"]
        assert definition["logging"]["options"]["max-size"]
    long_running = set(COMPOSE["services"]) - {"migrate"}
    assert all("stop_grace_period" in COMPOSE["services"][service] for service in long_running)


def test_service_containers_run_with_minimal_privileges() -> None:
    for service in SERVICES:
        definition = COMPOSE["services"][service]
        assert definition["read_only"]
        assert definition["cap_drop"] == ["ALL"]
    published = {name for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"gateway", "rabbitmq"} | OBSERVERS
    assert COMPOSE["networks"]["backend"]["internal"]


def test_each_published_port_has_an_address_of_its_own_which_is_localhost_by_default() -> None:
    """Publishing the API must not publish RabbitMQ's management UI with it."""
    ports = [port for name in ("gateway", "rabbitmq") for port in COMPOSE["services"][name]["ports"]]
    addresses = [port.partition("}:")[0] for port in ports]
    assert len(set(addresses)) == len(ports)
    assert all(re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1", address) for address in addresses)


def test_containers_without_a_password_are_published_only_on_localhost() -> None:
    for observer in OBSERVERS:
        definition = COMPOSE["services"][observer]
        assert definition["profiles"] == ["observability"]
        assert all(port.startswith("127.0.0.1:") for port in definition["ports"])
        assert re.search(r":v?\d+\.\d+\.\d+$", definition["image"])


def test_prometheus_scrapes_every_service_on_its_health_port() -> None:
    configuration = yaml.safe_load((PROJECT / "deploy/observability/prometheus.yml").read_text())
    scraped = {job["job_name"]: job["dns_sd_configs"][0] for job in configuration["scrape_configs"][:-1]}
    assert {job: (names["names"], names["port"]) for job, names in scraped.items()} == {
        service: ([service], SERVICES[service].model_fields["health_port"].default) for service in RUNNING
    }


def test_rabbitmq_definitions_match_what_the_services_declare() -> None:
    results = topology.all_results()
    bindings = [*topology.dead_letters(), *results, *map(topology.deliveries, Channel)]
    queues = {queue["name"]: queue["arguments"] for queue in DEFINITIONS["queues"]}
    assert queues == {binding.queue.name: dict(binding.queue.arguments or {}) for binding in bindings}
    bound = {(each["source"], each["destination"], each["routing_key"]) for each in DEFINITIONS["bindings"]}
    assert bound == {(binding.exchange.name, binding.queue.name, binding.routing_key) for binding in bindings}
    exchanges = {exchange["name"]: exchange["type"] for exchange in DEFINITIONS["exchanges"]}
    expected = (topology.NOTIFICATIONS, topology.RESULTS, topology.DEAD, topology.EVENTS)
    assert exchanges == {exchange.name: exchange.type.value for exchange in expected}


def test_rabbitmq_has_the_same_confirm_timeout_in_compose_and_the_local_stack() -> None:
    [timeout] = re.findall(r"confirm_timeout, (\d+)", (PROJECT / "deploy/rabbitmq/advanced.config").read_text())
    assert int(timeout) == DEAD_LETTER_TIMEOUT
    mounted = [volume for volume in COMPOSE["services"]["rabbitmq"]["volumes"] if "advanced.config" in volume]
    assert mounted == ["./deploy/rabbitmq/advanced.config:/etc/rabbitmq/advanced.config:ro"]


def may(user: str, right: str, name: str) -> bool:
    """Check a permission as RabbitMQ does: a pattern matches anywhere in a name unless it is anchored."""
    [permission] = [each for each in DEFINITIONS["permissions"] if each["user"] == user]
    return re.search(permission[right], name) is not None


def test_rabbitmq_roles_have_only_the_permissions_they_need() -> None:
    assert may("gateway", "write", "notifications")
    assert may("gateway", "write", "notifications.events")
    assert not may("gateway", "write", "notifications.results")
    # A gateway has its own event queue while it has subscribers.
    for right in ("configure", "write", "read"):
        assert may("gateway", right, "notifications.events.gateway.1")
    assert may("gateway", "read", "notifications.events")
    assert not may("gateway", "configure", "notifications.events")
    for queue in (*map(topology.delivery_queue_name, Channel), "notifications.results", "notifications.dead"):
        assert not may("gateway", "read", queue)
    for channel, other in permutations(Channel, 2):
        sender = f"{channel}_sender"
        assert may(sender, "read", f"notifications.{channel}")
        # Permission to declare the queue would also let the sender delete it along with all its messages.
        assert not may(sender, "configure", f"notifications.{channel}")
        for name in (f"notifications.{channel}.retry", f"notifications.{channel}.retry.1000"):
            assert all(may(sender, right, name) for right in ("configure", "write", "read"))
        for name in (
            f"notifications.{other}",
            f"notifications.{other}.retry",
            f"notifications.{other}.retry.1000",
            "notifications.results",
        ):
            assert not may(sender, "read", name)
            assert not may(sender, "configure", name)
        # Access to this exchange would let a sender read or forge the deliveries of other channels.
        assert not may(sender, "read", "notifications")
        assert not may(sender, "write", "notifications")
        assert may(sender, "write", "notifications.results")
        assert not may(sender, "configure", "notifications.events")
    for binding in (*topology.all_results(), *topology.dead_letters()[1:]):
        assert may("status_writer", "read", binding.queue.name)
    assert not may("status_writer", "read", "notifications.telegram")
