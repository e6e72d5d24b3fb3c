"""Upgrade from the recorded baseline to this version and back, under traffic, as docs/operations.md describes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, create_engine
from notify_local.ports import Ports
from notify_local.stack import as_environment
from sqlalchemy import text
from support.amqp import hand_on
from support.processes import START_TIMEOUT, STOP_TIMEOUT, all_final, answers, running_service
from support.roles import migration_settings
from support.servers import PROJECT
from support.services import eventually

BASELINE = (PROJECT / "tests/upgrade_baseline").read_text().split()[-1]
CHANNELS = (Channel.TELEGRAM, Channel.EMAIL)
SENDERS = tuple(f"{channel}_sender" for channel in CHANNELS)
PAUSE = 0.1  # seconds between two requests, so that messages are under way at every step
SHARE = 5  # notifications that are accepted in each phase


@pytest.fixture
def baseline(tmp_path: Path) -> list[Path]:
    """Return the source folders of the baseline's packages."""
    git = ("git", "-C", PROJECT)
    found = subprocess.run([*git, "cat-file", "-e", f"{BASELINE}^{{commit}}"], capture_output=True, check=False)  # noqa: S603 - constants
    if found.returncode != 0:
        pytest.skip(f"requires the git history: {found.stderr.decode().strip() or 'commit not found'}")
    archive = subprocess.run([*git, "archive", BASELINE, "libs", "services"], capture_output=True, check=True)  # noqa: S603 - constants
    folder = tmp_path / "baseline"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)  # noqa: S603, S607 - constants
    return sorted(folder.glob("*/*/src"))


class Installation:
    """The processes of two versions on one database and broker."""

    def __init__(self, rabbit: RabbitSettings, postgres: PostgresSettings, ledgers: Path, stack: ExitStack) -> None:
        self._servers = (rabbit, postgres)
        self._ledgers = ledgers
        self._stack = stack
        self._ports = Ports()
        self._running: dict[tuple[str, bool], subprocess.Popen[str]] = {}
        self.gateways: dict[bool, str] = {}

    async def migrate(self, postgres: PostgresSettings, sources: Sequence[Path] = ()) -> None:
        environment = {**os.environ, **as_environment(postgres), **_path(sources)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "notify_database.migrate", env=environment, stderr=subprocess.PIPE
        )
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()

    async def start(self, *services: str, sources: Sequence[Path] = (), **postgres: str) -> None:
        """Start the services, of this version or from `sources`, and return when all are ready.

        `postgres` overrides the PostgreSQL settings.
        """
        urls = []
        for service in services:
            port, health_port = self._ports.free(18_700), self._ports.free(18_900)
            settings = {
                "APP_PORT": str(port), "HEALTH_PORT": str(health_port), "SIMULATOR_FOLDER": str(self._ledgers),
                "TELEGRAM_SLEEP": "0.2", "EMAIL_SLEEP": "0.2", "ERROR_PROBABILITY": "0", "LOG_LEVEL": "ERROR",
                "RETRY_DELAY": "3600",  # nothing is retried, and fewer retry queues are declared in less time
                **_path(sources), **postgres,
            }  # fmt: skip
            process = running_service(service, *self._servers, **settings)
            self._running[service, bool(sources)] = self._stack.enter_context(process)
            urls.append(f"http://127.0.0.1:{port if service == 'gateway' else health_port}")
        await asyncio.gather(*(answers(f"{url}/readyz", 200, timeout=START_TIMEOUT) for url in urls))
        if "gateway" in services:
            self.gateways[bool(sources)] = urls[services.index("gateway")]

    async def stop(self, *services: str, baseline: bool) -> None:
        """Stop the services of one version; all must end cleanly and log no error."""
        processes = [self._running.pop((service, baseline)) for service in services]
        if "gateway" in services:
            del self.gateways[baseline]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            _, errors = await asyncio.to_thread(process.communicate, timeout=STOP_TIMEOUT)
            assert (process.returncode, errors) == (0, "")


def _path(sources: Sequence[Path]) -> dict[str, str]:
    """Return the variable that makes Python use these sources instead of the installed packages."""
    return {"PYTHONPATH": os.pathsep.join(map(str, sources))} if sources else {}


class Traffic:
    """Clients that post one notification after the other through all gateways, and repeat requests that fail."""

    def __init__(self, installation: Installation, client: httpx.AsyncClient) -> None:
        self._installation = installation
        self._client = client
        self.accepted: list[str] = []

    async def flow(self) -> None:
        """Wait until some more notifications have been accepted."""
        wanted = len(self.accepted) + SHARE

        async def accepted() -> bool:
            return len(self.accepted) >= wanted

        await eventually(accepted, "notifications are accepted", timeout=START_TIMEOUT)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        posting = asyncio.create_task(self._post(stop))
        try:
            yield
        finally:
            stop.set()
            await posting

    async def _post(self, stop: asyncio.Event) -> None:
        body = {"user_id": 1, "message": "x", "channels": [channel.value for channel in CHANNELS]}
        headers = {"Idempotency-Key": str(uuid4())}
        for number in count():
            if stop.is_set():
                return
            gateways = list(self._installation.gateways.values())
            with suppress(httpx.TransportError):
                url = f"{gateways[number % len(gateways)]}/api/notifications"
                response = await self._client.post(url, json=body, headers=headers)
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    assert response.status_code == httpx.codes.CREATED, response.text
                    self.accepted.append(response.json()["id"])
                    headers = {"Idempotency-Key": str(uuid4())}
            await asyncio.sleep(PAUSE)


async def depths(rabbit: RabbitSettings, *queues: str) -> dict[str, int]:
    async with hand_on(rabbit) as hand:
        return {queue: await hand.depth(queue) for queue in queues}


@pytest.mark.timeout(600)
async def test_upgrade_and_rollback_under_traffic_lose_and_repeat_nothing(
    rabbit: RabbitSettings, empty_postgres: PostgresSettings, baseline: list[Path], tmp_path: Path
) -> None:
    older = ("notifications.results", "notifications.dead.inbox", "notifications.dead")
    inboxes = [topology.dead_letters(channel)[-1] for channel in (None, *CHANNELS)]
    newer = [binding.queue.name for binding in (*inboxes, *map(topology.results, CHANNELS))]
    with ExitStack() as stack:
        installation = Installation(rabbit, empty_postgres, tmp_path / "ledgers", stack)
        await installation.migrate(empty_postgres, baseline)
        # Before the upgrade, a superuser owns everything, and all services log in as this user.
        superuser = empty_postgres.postgres_user
        services = ("status_writer", *SENDERS, "gateway")
        await installation.start(*services, sources=baseline, POSTGRES_USER=superuser)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            traffic = Traffic(installation, client)
            async with traffic.running():
                await traffic.flow()
                with pytest.raises(ChannelNotFoundEntity):
                    await depths(rabbit, *newer)  # these processes are indeed of the baseline

                # The upgrade: the database, status writers, senders, gateways.
                await installation.migrate(migration_settings(empty_postgres))
                await installation.start("status_writer")
                await traffic.flow()
                await installation.stop("status_writer", baseline=True)
                await installation.start(*SENDERS)
                await traffic.flow()
                await installation.stop(*SENDERS, baseline=True)
                await installation.start("gateway")
                await traffic.flow()
                await installation.stop("gateway", baseline=True)
                await traffic.flow()

                # The rollback: gateways, senders, and status writers once the queues that only they know are empty.
                await installation.start("gateway", sources=baseline)
                await traffic.flow()
                await installation.stop("gateway", baseline=False)
                await installation.start(*SENDERS, sources=baseline)
                await traffic.flow()
                await installation.stop(*SENDERS, baseline=False)

                async def newer_queues_are_empty() -> bool:
                    return set((await depths(rabbit, *newer)).values()) == {0}

                await eventually(newer_queues_are_empty, "the status writer has read every newer queue")
                await installation.start("status_writer", sources=baseline)
                await installation.stop("status_writer", baseline=False)
                await traffic.flow()
            client.base_url = httpx.URL(installation.gateways[True])
            notifications = await all_final(client, traffic.accepted)
        await installation.stop("status_writer", *SENDERS, "gateway", baseline=True)
    assert len(set(traffic.accepted)) == len(traffic.accepted)
    deliveries = [delivery for each in notifications for delivery in each["deliveries"]]
    assert len(deliveries) == len(CHANNELS) * len(traffic.accepted)
    assert {delivery["status"] for delivery in deliveries} == {"sent"}
    ledgers = (ledger.read_text() for ledger in (tmp_path / "ledgers").glob("*.ledger"))
    sent = Counter(line.split()[1] for ledger in ledgers for line in ledger.splitlines())
    assert sent == {delivery["id"]: 1 for delivery in deliveries}
    assert set((await depths(rabbit, *older, *newer)).values()) == {0}


DUE_NOW = text("UPDATE outbox SET due_at = now(), leased_until = NULL")


@pytest.mark.timeout(300)
async def test_older_services_go_on_while_there_are_users_whose_ids_are_texts(
    rabbit: RabbitSettings, empty_postgres: PostgresSettings, baseline: list[Path], tmp_path: Path
) -> None:
    """Accept, send and report, although older gateways cannot show the notifications of such users."""
    superuser = empty_postgres.postgres_user
    body = {"user_id": "a-text", "message": "x", "channels": [channel.value for channel in CHANNELS]}
    async with AsyncExitStack() as stack:
        installation = Installation(rabbit, empty_postgres, tmp_path / "ledgers", stack.enter_context(ExitStack()))
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30))
        engine = create_engine(empty_postgres, pool_size=1)
        stack.push_async_callback(engine.dispose)

        async def sent(deliveries: int) -> None:
            async def are_sent() -> bool:
                async with engine.connect() as connection:
                    rows = await connection.execute(text("SELECT count(*) FROM deliveries WHERE status = 'sent'"))
                return int(rows.scalar_one()) == deliveries

            await eventually(are_sent, f"{deliveries} deliveries are sent", timeout=START_TIMEOUT)

        await installation.migrate(empty_postgres, baseline)
        await installation.migrate(migration_settings(empty_postgres))
        await installation.start("status_writer", *SENDERS, sources=baseline, POSTGRES_USER=superuser)
        await installation.start("gateway")
        v1 = f"{installation.gateways[False]}/v1/notifications"
        later = {"send_at": (utc_now() + timedelta(hours=1)).isoformat()}
        posted = [(await client.post(v1, json=each)).raise_for_status().json()["id"] for each in (body, body | later)]
        await sent(2)  # by senders that do not know the field with the text
        await installation.stop("gateway", baseline=False)

        await installation.start("gateway", sources=baseline, POSTGRES_USER=superuser)
        api = f"{installation.gateways[True]}/api/notifications"
        async with engine.begin() as connection:
            await connection.execute(DUE_NOW)
        accepted = (await client.post(api, json=body | {"user_id": 1})).raise_for_status().json()
        await sent(6)
        of_user = (await client.get(api, params={"user_id": 1})).raise_for_status().json()["items"]
        assert [(each["id"], each["status"]) for each in of_user] == [(accepted["id"], "sent")]
        for path in (f"{api}/{posted[0]}", api):
            response = await client.get(path, headers={"Connection": "close"})
            assert response.status_code == httpx.codes.INTERNAL_SERVER_ERROR

        # The next upgrade shows everything again.
        await installation.start("gateway")
        v1 = f"{installation.gateways[False]}/v1/notifications"
        listed = (await client.get(v1, params={"user_id": "a-text"})).raise_for_status().json()["items"]
        assert [(each["id"], each["status"]) for each in listed] == [(each, "sent") for each in reversed(posted)]
