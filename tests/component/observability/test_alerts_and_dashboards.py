"""Prometheus rules and Grafana dashboards must use only exported metrics, and alerts must match recorded faults."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from chaos.record import RECORDED, RULES, SCENARIOS, SCRAPE_INTERVAL
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.health import health_app
from notify_common.runtime.metrics import exposition
from notify_status_writer.metrics import StatusWriterMetrics
from prometheus_client import CollectorRegistry
from support.debian import unpacked
from support.fakes import FakeProvider
from support.servers import PROJECT
from support.services import running_sender

FOLDER = PROJECT / "deploy/observability"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
TESTS = PROJECT / "tests/observability"
RECORDINGS = sorted(RECORDED.glob("*.yml"))
# For each recorded fault, all alerts that fire at any time before the recording ends.
FIRES: dict[str, set[str]] = {
    "clean": set(),
    "memory-alarm": {"NotifyOutboxIsOld"},
    "rabbitmq-frozen": {
        "NotifyOutboxIsOld",
        *(f'NotifyNothingConsumes queue="notifications.{name}"' for name in (*Channel, "results", "dead.inbox")),
    },
    "tables-locked": {"NotifyRequestsFail"},
    "provider-fails": {f'NotifyDeliveriesFail channel="{channel}"' for channel in Channel},
    "provider-hangs": {f'NotifyDeliveriesFail channel="{channel}"' for channel in Channel},
    "mail-server-down": {'NotifyProviderIsAway channel="email"'},
    "every-telegram-sender-frozen": {
        'NotifyNothingConsumes queue="notifications.telegram"',
        'NotifyQueueGrows queue="notifications.telegram"',
    },
    "too-few-telegram-senders": {'NotifyIsSlow channel="telegram"'},
}
# No recorded fault makes these alerts fire. The examples in rules_test.yml do.
NOT_RECORDED = {
    "NotifyQueueDiffers",
    "NotifyQueueLacksMembers",
    "NotifyDeadLettersWait",
    "NotifyResultsRefused",
    "NotifyClockIsWrong",
    "NotifyPartitionsRunOut",
}
FIRED = """group by (alertname, channel, queue) (count_over_time(ALERTS{alertstate="firing"}[1h]))"""


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = shutil.which("promtool")
    root = Path(tmp_path_factory.mktemp("prometheus"), "packages")
    return found or str(unpacked("prometheus", folder=root, with_libraries=False) / "usr/bin/promtool")


def run(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)  # noqa: S603 - constants
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_configuration_is_valid(promtool: str) -> None:
    run(promtool, "check", "config", FOLDER / "prometheus.yml")


def test_each_alert_fires_only_on_its_fault(promtool: str) -> None:
    run(promtool, "test", "rules", TESTS / "rules_test.yml", TESTS / "rules_week_test.yml")
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = (TESTS / "rules_test.yml").read_text().partition("name: RabbitMQ is unavailable")[2]
    assert {alert for alert in alerts if f"alertname: {alert}\n" in tested} == alerts


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.stem)
def test_recorded_fault_triggers_exactly_the_expected_alerts(promtool: str, recording: Path, tmp_path: Path) -> None:
    recorded = yaml.safe_load(recording.read_text())
    fires = [
        {"labels": f'{{alertname="{name}"{label and ", "}{label}}}', "value": 1}
        for name, _, label in (each.partition(" ") for each in sorted(FIRES[recording.stem]))
    ]
    end = SCENARIOS[recording.stem].seconds - SCRAPE_INTERVAL  # any later, the series would be stale
    test = tmp_path / "test.yml"
    test.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(RULES)],
                "evaluation_interval": f"{SCRAPE_INTERVAL}s",
                "tests": [
                    {**recorded, "promql_expr_test": [{"expr": FIRED, "eval_time": f"{end}s", "exp_samples": fires}]}
                ],
            }
        )
    )
    run(promtool, "test", "rules", test)


def test_every_scenario_is_recorded_and_every_alert_fires_in_some_scenario() -> None:
    assert {recording.stem for recording in RECORDINGS} == SCENARIOS.keys() == FIRES.keys()
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert {each.partition(" ")[0] for fires in FIRES.values() for each in fires} == alerts - NOT_RECORDED


@pytest.fixture
async def exported(promtool: str, api: httpx.AsyncClient, rabbit: RabbitSettings) -> set[str]:
    """Return the names of all metrics that any service exports."""
    expositions = [(await api.get("http://gateway:8085/metrics")).text]
    async with running_sender(rabbit, FakeProvider()) as sender:
        health_app(sender.subscriptions, sender.registry)
        expositions.append(exposition(sender.registry, "")[0].decode())
    registry = CollectorRegistry()
    StatusWriterMetrics(registry)
    expositions.append(exposition(registry, "")[0].decode())
    for each in expositions:
        run(promtool, "check", "metrics", stdin=each)
    return {name for each in expositions for name in re.findall(r"^# TYPE (\w+)", each, re.MULTILINE)}


def metrics_of(expression: str) -> set[str]:
    """Return the names of our metrics and rules in the expression; RabbitMQ's own metrics are not checked."""
    words = set(re.findall(r"[A-Za-z_:][\w:]*", re.sub(r'"[^"]*"', "", expression)))
    names = {word for word in words if word.startswith(("notify_", "process_")) or ":" in word}
    return {re.sub("_(bucket|count|sum)$", "", name) for name in names}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries(dashboard: Path) -> list[str]:
    content = json.loads(dashboard.read_text())
    variables = [variable["query"]["query"] for variable in content["templating"]["list"]]
    return [
        *(re.fullmatch(r"label_values\((\w+), \w+\)", variable)[1] for variable in variables),  # type: ignore[index]
        *(annotation["expr"] for annotation in content["annotations"]["list"]),
        *(target["expr"] for panel in content["panels"] for target in panel["targets"]),
    ]


def test_rules_use_only_exported_metrics(exported: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert metrics_of(rule["expr"]) <= exported | recorded


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.stem)
def test_dashboard_uses_only_exported_metrics(dashboard: Path, exported: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for query in queries(dashboard):
        assert metrics_of(query) <= exported | recorded, query


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.stem)
def test_dashboard_queries_are_valid(promtool: str, dashboard: Path, tmp_path: Path) -> None:
    expanded = [query.replace("$__rate_interval", "1m") for query in queries(dashboard)]
    assert not any("$__" in query for query in expanded)
    groups = [{"name": "queries", "rules": [{"record": f"q{n}", "expr": query} for n, query in enumerate(expanded)]}]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    assert f"{len(expanded)} rules found" in run(promtool, "check", "rules", file)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.stem)
def test_dashboard_panels_are_described_and_do_not_overlap(dashboard: Path) -> None:
    panels = json.loads(dashboard.read_text())["panels"]
    assert all(panel["title"] and panel["description"] for panel in panels)
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24


def test_every_metric_is_on_a_dashboard(exported: set[str]) -> None:
    shown = {name for dashboard in DASHBOARDS for query in queries(dashboard) for name in metrics_of(query)}
    used_by_shown_rules = {name for rule in rules() if rule.get("record") in shown for name in metrics_of(rule["expr"])}
    ours = {name for name in exported if name.startswith("notify_") and not name.endswith("_created")}
    assert ours - shown - used_by_shown_rules == set()
