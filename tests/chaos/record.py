"""`python -m chaos.record`: record what Prometheus sees during lasting faults, for the tests of the alert rules.

Each scenario runs its own system under a light load: two minutes without a fault, then with it until the end. All
scenarios run at the same time, and every service is scraped at the interval of deploy/observability/prometheus.yml.
"""

import argparse
import asyncio
import math
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import httpx
import psutil
import yaml
from notify_local.console import say
from notify_local.stack import SERVICES
from prometheus_client.parser import text_string_to_metric_families
from support.processes import System, running_system
from support.servers import PROJECT

from chaos.faults import MAIL_SERVER_DOWN, inject
from chaos.load import Load
from chaos.mail_server import MailServer
from chaos.scene import Scene

RECORDED = PROJECT / "tests/observability/recorded"
RULES = PROJECT / "deploy/observability/rules.yml"
SCRAPE_INTERVAL = 15  # seconds
SCRAPE_TIMEOUT = 10.0  # seconds
QUIET = 120  # seconds before a fault
RATE = 5.0  # notifications a second, each over every channel
SETTINGS = {"TELEGRAM_SLEEP": "0.2", "EMAIL_SLEEP": "0.2", "ERROR_PROBABILITY": "0.1", "RETRY_DELAY": "0.5"}

Act = Callable[[Scene], Awaitable[object]]
"""A fault that lasts as long as the scene says."""
Samples = Mapping[str, float]
"""The values from one scrape, by series."""


@dataclass(frozen=True)
class Scenario:
    """A scenario that lasts `seconds`. Its fault begins after `QUIET` seconds; None means that there is no fault."""

    seconds: int
    fault: Act | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    smtp: bool = False


def _injected(name: str) -> Act:
    return lambda scene: inject(scene, name)


def _frozen(program: str) -> Act:
    """Return a fault that suspends a process, because a killed process would be restarted within seconds."""

    async def act(scene: Scene) -> None:
        process = psutil.Process(scene.system.pid(program))
        process.suspend()
        try:
            await asyncio.sleep(scene.hold)
        finally:
            process.resume()

    return act


# With ten concurrent calls of 4 s each, the sender can handle only half of the load.
TOO_FEW = {"TELEGRAM_SLEEP": "4", "EMAIL_SLEEP": "0.1", "WEBHOOK_SLEEP": "0.1", "CONCURRENCY": "10"}
SCENARIOS = {
    "clean": Scenario(1080),
    "memory-alarm": Scenario(480, _injected("memory alarm")),
    "rabbitmq-frozen": Scenario(480, _frozen("rabbitmq")),
    "tables-locked": Scenario(480, _injected("tables locked")),
    "provider-fails": Scenario(660, _injected("provider fails")),
    "provider-hangs": Scenario(660, _injected("provider hangs"), {"PROVIDER_TIMEOUT": "2"}),
    "mail-server-down": Scenario(660, _injected(MAIL_SERVER_DOWN), smtp=True),
    "every-telegram-sender-frozen": Scenario(1080, _frozen("telegram_sender")),
    "too-few-telegram-senders": Scenario(1080, settings=TOO_FEW),
}


class Recording:
    """A recording with one value per scrape for each series; None means that the series was missing from the scrape."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float | None]] = defaultdict(list)
        self._scrapes = 0

    def add(self, samples: Samples) -> None:
        """Add the samples of one scrape of all targets."""
        for series in samples.keys() | self._values.keys():
            values = self._values[series]
            values += [None] * (self._scrapes - len(values))
            values.append(samples.get(series))
        self._scrapes += 1

    def write(self, path: Path) -> None:
        """Write the recording in the format of `promtool test rules`."""
        lines = [f"  - {{ series: '{name}', values: '{_notation(values)}' }}" for name, values in self._values.items()]
        head = f"# Recorded by `make record`.\ninterval: {SCRAPE_INTERVAL}s\ninput_series:\n"
        path.write_text(head + "\n".join(sorted(lines)) + "\n")


def _notation(values: Iterable[float | None]) -> str:
    """Return the values in promtool's notation; like Prometheus, mark a series that disappears as stale."""
    words: list[str] = []
    for text, alike in groupby(map(_text, values)):
        repeats = len(list(alike)) - 1
        if text is not None:
            words.append(f"{text}x{repeats}" if repeats else text)
        elif words:
            words += ["stale", f"_x{repeats}"] if repeats else ["stale"]
        else:
            words.append(f"_x{repeats + 1}")
    return " ".join(words)


def _text(value: float | None) -> str | None:
    # promtool's notation has no NaN, so NaN is written as a missing value; our rules treat both alike.
    return None if value is None or math.isnan(value) else f"{value:.10g}"


class Scraper:
    """Scrapes a system's services and RabbitMQ's management API, which stands in for its Prometheus plugin."""

    def __init__(self, system: System, client: httpx.AsyncClient) -> None:
        self._client = client
        self._metrics = _metrics_of_the_rules()
        self._queues = f"{system.addresses()['RABBITMQ_MANAGEMENT_URL']}/api/queues/%2F?columns=name,messages_ready"
        ports = {name: psutil.Process(system.pid(name)).environ()["HEALTH_PORT"] for name in SERVICES}
        self._urls = {name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()}

    async def scrape(self) -> Samples:
        """Return the metrics that the rules use; an unresponsive target contributes none."""
        scraped = await asyncio.gather(self._scrape_rabbitmq(), *map(self._scrape_service, self._urls))
        return {series: value for samples in scraped for series, value in samples.items()}

    async def _scrape_service(self, instance: str) -> Samples:
        try:
            response = (await self._client.get(self._urls[instance])).raise_for_status()
        except httpx.HTTPError:
            return {}
        return {
            _series(sample.name, {**sample.labels, "instance": instance}): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.name in self._metrics
        }

    async def _scrape_rabbitmq(self) -> Samples:
        try:
            response = (await self._client.get(self._queues)).raise_for_status()
        except httpx.HTTPError:
            return {}
        return {
            _series("rabbitmq_queue_messages_ready", {"queue": queue["name"]}): queue.get("messages_ready", 0)
            for queue in response.json()
        }


def _series(name: str, labels: Mapping[str, str]) -> str:
    pairs = ", ".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}"


def _metrics_of_the_rules() -> frozenset[str]:
    rules = yaml.safe_load(RULES.read_text())
    expressions = " ".join(rule["expr"] for group in rules["groups"] for rule in group["rules"])
    return frozenset(re.findall(r"\b(?:notify|rabbitmq)_\w+", expressions))


async def record(name: str, folder: Path, starting: asyncio.Lock) -> None:
    """Run a scenario and write its recording."""
    scenario, ledgers = SCENARIOS[name], folder / "simulator"
    settings = {**SETTINGS, **scenario.settings, "SIMULATOR_FOLDER": str(ledgers)}
    mail_server = MailServer(ledgers) if scenario.smtp else None
    if mail_server is not None:
        await mail_server.open()
        settings |= mail_server.environment()
    with ExitStack() as stack:
        async with starting:  # start one system at a time, so that no two choose the same free ports
            system = await asyncio.to_thread(stack.enter_context, running_system(folder / "stack", settings))
        async with system.client() as gateway:
            lasts, load = scenario.seconds - QUIET, Load([gateway], RATE, ahead=10, recipients=scenario.smtp)
            scene = Scene(system, ledgers, random.Random(0), lasts, lasts, load, mail_server=mail_server)
            recording = await _record(scenario, scene)
        recording.write(RECORDED / f"{name}.yml")
        say(f"recorded: {name}")
        await asyncio.to_thread(stack.close)
    if mail_server is not None:
        await mail_server.close()


async def _record(scenario: Scenario, scene: Scene) -> Recording:
    recording, clock = Recording(), asyncio.get_running_loop().time
    async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT, trust_env=False) as client:
        scraper = Scraper(scene.system, client)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(scene.load.run(round(RATE * scenario.seconds)))
            if scenario.fault is not None:
                group.create_task(_later(scenario.fault, scene))
            began = clock()
            for number in range(scenario.seconds // SCRAPE_INTERVAL):
                await asyncio.sleep(began + number * SCRAPE_INTERVAL - clock())
                recording.add(await scraper.scrape())
            loading.cancel()
    return recording


async def _later(fault: Act, scene: Scene) -> None:
    await asyncio.sleep(QUIET)
    await fault(scene)


async def record_all(names: Iterable[str], folder: Path) -> None:
    """Record the named scenarios at the same time."""
    starting = asyncio.Lock()
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(record(name, folder / name, starting))


def main() -> None:
    """Record the scenarios named on the command line, or all of them if none is named."""
    parser = argparse.ArgumentParser(prog="python -m chaos.record", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"scenarios to record: {', '.join(SCENARIOS)} (default: all)"
    )
    names = parser.parse_args().names or list(SCENARIOS)
    if unknown := set(names) - SCENARIOS.keys():
        parser.error(f"unknown scenarios: {', '.join(unknown)}")
    minutes = max(SCENARIOS[name].seconds for name in names) // 60
    say(f"Recording {len(names)} scenarios at once, for {minutes} minutes: {', '.join(names)}")
    RECORDED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recorded-") as folder:
        for name in names:
            Path(folder, name).mkdir()
        asyncio.run(record_all(names, Path(folder)))


if __name__ == "__main__":
    main()
