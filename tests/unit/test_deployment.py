"""Values must agree between the settings, docs/settings.md, Compose, .env.example and RabbitMQ's definitions."""

import json
import re
import subprocess
import tomllib
from collections.abc import Mapping
from importlib import import_module
from itertools import permutations
from typing import Any

import pytest
import yaml
from notify_common.contracts import messages, topology
from notify_common.contracts.channels import Channel
from notify_common.runtime.process import GRACEFUL_TIMEOUT
from notify_common.runtime.secret_files import is_secret
from notify_common.sending.service import ACK_TIME, SenderSettings
from notify_database.maintenance import MaintenanceSettings
from notify_database.migrate import MigrationSettings
from notify_gateway.application import MAINTENANCE_STOP_TIMEOUT, RELAY_STOP_TIMEOUT
from notify_gateway.settings import GatewaySettings
from notify_local.env_file import DRAWN, PROVIDERS
from notify_local.rabbitmq import DEAD_LETTER_TIMEOUT, MAX_MESSAGE_SIZE
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
    "maintenance": MaintenanceSettings,
}
# Compose does not pass these: images set the address and port, and containers do not store simulated messages.
IN_THE_IMAGE = {"APP_HOST", "APP_PORT", "HEALTH_HOST", "HEALTH_PORT", "SIMULATOR_FOLDER"}
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
EXAMPLE = dict(
    line.split("=", 1) for line in (PROJECT / ".env.example").read_text().splitlines() if line and line[0] != "#"
)
OBSERVERS = {name for name, service in COMPOSE["services"].items() if service.get("profiles") == ["observability"]}
INTERNAL = {"database", "broker", "proxied"}
RAW_DEFINITIONS = (PROJECT / "deploy/rabbitmq/definitions.json").read_text()
DEFINITIONS: dict[str, list[dict[str, Any]]] = json.loads(RAW_DEFINITIONS)


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


def secrets_of(settings: type[BaseSettings]) -> set[str]:
    return {name.upper() for name, field in settings.model_fields.items() if is_secret(field.annotation)}


@pytest.mark.parametrize("service", SERVICES)
def test_compose_passes_each_service_exactly_its_settings(service: str) -> None:
    given = set(COMPOSE["services"][service]["environment"])
    files = ("_CA_FILE", "_CERT_FILE", "_KEY_FILE")  # these must be mounted, too
    expected = {name for name in variables(SERVICES[service]) - IN_THE_IMAGE if not name.endswith(files)}
    secrets = secrets_of(SERVICES[service])
    assert given == (expected - secrets) | {f"{name}_FILE" for name in secrets}


def test_each_container_mounts_exactly_the_secrets_that_its_settings_name() -> None:
    mounted: set[str] = set()
    for service in COMPOSE["services"].values():
        values = service.get("environment", {}).values()
        named = {name for value in values for name in re.findall(r"/run/secrets/(\w+)", str(value))}
        assert named == set(service.get("secrets", []))
        mounted |= named
    assert mounted == set(COMPOSE["secrets"])
    # YAML cannot load this file, because it has tags of Compose's own.
    of_the_cluster = set(re.findall(r"/run/secrets/(\w+)", (PROJECT / "deploy/cluster/compose.yml").read_text()))
    assert mounted | of_the_cluster == {*DRAWN, *PROVIDERS}
    # Compose implements other secrets by copying them into the container, which is impossible if it is read-only.
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())


def test_no_secret_is_in_the_environment_of_a_container() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert re.fullmatch(rf"/run/secrets/\w+|\$\{{{name}:\+/run/secrets/\w+}}", value), name


def test_a_providers_secret_is_optional_and_any_other_one_is_required() -> None:
    for name, secret in COMPOSE["secrets"].items():
        if name in PROVIDERS:
            assert secret["file"] == f"${{{name.upper()}_FILE:-/dev/null}}"
        else:
            assert not secret["file"].endswith("/dev/null}")


def test_env_example_lists_exactly_the_variables_that_compose_uses() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (PROJECT / "docker-compose.yml").read_text()))
    assert used == set(EXAMPLE)


def test_env_example_and_compose_agree_on_the_defaults() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    for name, value in EXAMPLE.items():
        default = "/dev/null" if name.removesuffix("_FILE").lower() in PROVIDERS else value
        assert f"${{{name}:-{default}}}" in text
        if name in table():
            assert table()[name] == (value or "none")


def test_env_example_is_valid_and_contains_no_secret() -> None:
    GatewaySettings.model_validate({name.lower(): value for name, value in EXAMPLE.items() if value})
    assert not set(EXAMPLE) & {name.upper() for name in COMPOSE["secrets"]}


def test_every_container_that_checks_secrets_gets_the_switch_that_allows_the_examples() -> None:
    for service in (*SERVICES, "rabbitmq"):
        assert COMPOSE["services"][service]["environment"]["ALLOW_INSECURE"] == "${ALLOW_INSECURE:-false}"


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


def test_gateway_grace_period_is_longer_than_its_shutdown() -> None:
    longest = float(EXAMPLE["SHUTDOWN_DELAY"]) + GRACEFUL_TIMEOUT + RELAY_STOP_TIMEOUT + MAINTENANCE_STOP_TIMEOUT
    assert int(EXAMPLE["GATEWAY_STOP_GRACE_PERIOD"].removesuffix("s")) > longest


def test_every_container_has_memory_and_log_limits() -> None:
    for definition in COMPOSE["services"].values():
        assert definition["mem_limit"]
        assert definition["logging"]["options"]["max-size"]
    long_running = set(COMPOSE["services"]) - {"migrate"}
    assert all("stop_grace_period" in COMPOSE["services"][service] for service in long_running)


def test_containers_run_with_minimal_privileges() -> None:
    assert all(COMPOSE["services"][service]["read_only"] for service in (*SERVICES, "edge"))
    for definition in COMPOSE["services"].values():
        assert definition["cap_drop"] == ["ALL"]
        assert "cap_add" not in definition
        assert definition["security_opt"] == ["no-new-privileges:true"]
    published = {name for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"gateway", "rabbitmq", "edge"} | OBSERVERS


def members(network: str) -> set[str]:
    return {name for name, service in COMPOSE["services"].items() if network in service["networks"]}


def test_containers_share_a_network_only_if_they_talk_to_each_other() -> None:
    assert members("database") == {"postgres", "migrate", "maintenance", "gateway", "status_writer"}
    # Prometheus asks every service for its metrics, and every service sends traces to Jaeger.
    assert members("broker") - OBSERVERS == {"rabbitmq", "gateway", "status_writer"}
    for channel in Channel:
        assert members(channel) - OBSERVERS == {"rabbitmq", f"{channel}_sender"}
        assert COMPOSE["services"][f"{channel}_sender"]["networks"] == [channel]
    assert members("api") == {"gateway"}
    assert members("proxied") == {"gateway", "edge"}
    assert members("ingress") == {"edge"}
    assert members("observers") == OBSERVERS
    assert {name for name, network in COMPOSE["networks"].items() if network} == INTERNAL
    assert all(COMPOSE["networks"][name]["internal"] for name in INTERNAL)


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
    bindings = [*topology.status_writer(), *map(topology.deliveries, Channel)]
    queues = {queue["name"]: queue["arguments"] for queue in DEFINITIONS["queues"]}
    assert queues == {binding.queue.name: dict(binding.queue.arguments or {}) for binding in bindings}
    bound = {(each["source"], each["destination"], each["routing_key"]) for each in DEFINITIONS["bindings"]}
    assert bound == {(binding.exchange.name, binding.queue.name, binding.routing_key) for binding in bindings}
    exchanges = {exchange["name"]: exchange["type"] for exchange in DEFINITIONS["exchanges"]}
    expected = {topology.EVENTS, *(binding.exchange for binding in bindings)}
    assert exchanges == {exchange.name: exchange.type.value for exchange in expected}


def test_archives_have_the_same_limits_in_compose_and_the_local_stack_and_no_other_queue_has_them() -> None:
    [policy] = DEFINITIONS["policies"]
    assert (policy["name"], policy["pattern"]) == (topology.ARCHIVE_POLICY, topology.ARCHIVE_PATTERN)
    assert policy["definition"] == dict(topology.ARCHIVE_LIMITS)
    limited = {queue["name"] for queue in DEFINITIONS["queues"] if re.search(policy["pattern"], queue["name"])}
    assert limited == {binding.queue.name for binding in topology.archives()}


def test_rabbitmq_cluster_settings_agree() -> None:
    cluster = (PROJECT / "deploy/rabbitmq/cluster.conf").read_text()
    nodes = re.findall(r"^cluster_formation[.]classic_config[.]nodes[.]\d = (\S+)$", cluster, re.MULTILINE)
    [hint] = re.findall(r"^cluster_formation[.]target_cluster_size_hint = (\d+)$", cluster, re.MULTILINE)
    alone, clustered = (
        (PROJECT / f"deploy/rabbitmq/{name}").read_text() for name in ("advanced.config", "cluster_advanced.config")
    )
    assert re.findall(r"target_group_size, (\d+)", clustered) == [hint] == [str(len(set(nodes)))]
    [timeout] = re.findall(r"confirm_timeout, \d+", alone)
    assert timeout in clustered


def test_rabbitmq_has_the_same_confirm_timeout_in_compose_and_the_local_stack() -> None:
    [timeout] = re.findall(r"confirm_timeout, (\d+)", (PROJECT / "deploy/rabbitmq/advanced.config").read_text())
    assert int(timeout) == DEAD_LETTER_TIMEOUT
    mounted = [volume for volume in COMPOSE["services"]["rabbitmq"]["volumes"] if "advanced.config" in volume]
    assert mounted == ["./deploy/rabbitmq/advanced.config:/etc/rabbitmq/advanced.config:ro"]


def may(user: str, right: str, name: str, definitions: Mapping[str, list[dict[str, Any]]] = DEFINITIONS) -> bool:
    """Check a permission as RabbitMQ does: a pattern matches anywhere in a name unless it is anchored."""
    [permission] = [each for each in definitions["permissions"] if each["user"] == user]
    return re.search(permission[right], name) is not None


def test_rabbitmq_accepts_the_largest_message_everywhere() -> None:
    [size] = re.findall(r"\nmax_message_size = (\d+)\n", (PROJECT / "deploy/rabbitmq/rabbitmq.conf").read_text())
    assert int(size) == MAX_MESSAGE_SIZE
    assert int(size) >= max(messages.MAX_REQUEST_BYTES, messages.MAX_RESULTS_BYTES, messages.MAX_CHANGES_BYTES)


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
            "notifications.results", "notifications.dead",
            f"notifications.results.{other}", f"notifications.dead.{other}", f"notifications.dead.{other}.failed",
        ):  # fmt: skip
            assert not any(may(sender, right, name) for right in ("configure", "write", "read"))
        # Access to this exchange would let a sender read or forge the deliveries of other channels.
        assert not may(sender, "read", "notifications")
        assert not may(sender, "write", "notifications")
        for name in (f"notifications.results.{channel}", f"notifications.dead.{channel}"):
            assert may(sender, "write", name)
            assert not may(sender, "configure", name)
            assert not may(sender, "read", name)
        assert not may(sender, "configure", "notifications.events")
    for binding in (*topology.all_results(), *topology.all_dead_letters()):
        is_archive = binding.queue.name in {each.queue.name for each in topology.archives()}
        assert may("status_writer", "read", binding.queue.name) != is_archive
    assert not may("status_writer", "read", "notifications.telegram")


def test_older_senders_get_their_former_rights_only_if_they_are_allowed() -> None:
    script = PROJECT / "deploy/rabbitmq/old_senders.sed"
    command = ["sed", "-E", "-f", str(script), str(PROJECT / "deploy/rabbitmq/definitions.json")]
    changed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603 - constants
    for channel, other in permutations(Channel, 2):
        sender = f"{channel}_sender"
        for name in ("notifications.results", "notifications.dead"):
            assert may(sender, "write", name, changed)
            assert not may(sender, "write", name)
            assert may(sender, "write", f"{name}.{channel}", changed)
            assert not may(sender, "write", f"{name}.{other}", changed)
    patterns = [[each.pop("write") for each in file["permissions"]] for file in (changed, json.loads(RAW_DEFINITIONS))]
    assert [one == two for one, two in zip(*patterns, strict=True)].count(False) == len(Channel)
    mounted = {volume.split(":")[0] for volume in COMPOSE["services"]["rabbitmq"]["volumes"]}
    assert "./deploy/rabbitmq/old_senders.sed" in mounted
