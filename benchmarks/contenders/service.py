"""This service, with `AUTH=off`, as it has always been measured, and with API keys."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.checkouts import check_out
from benchmarks.contenders.contender import CONCURRENCY, Contender, Environment, Program
from benchmarks.contenders.ports import free_port
from benchmarks.paths import PRODUCT_PYTHON

if TYPE_CHECKING:
    from benchmarks.servers import Servers

# The limiter works, but never refuses a request. The default of 1,000 a second would.
RATE_LIMIT = "1000000"


def settings(servers: "Servers", latency: float) -> Environment:
    """Return the environment of all our processes."""
    return {
        **servers.service_settings(), "AUTH": "off", "ERROR_PROBABILITY": "0", "TELEGRAM_SLEEP": str(latency),
        "LOG_LEVEL": "WARNING", "SHUTDOWN_DELAY": "0",
    }  # fmt: skip


def migrate(servers: "Servers", python: Path = PRODUCT_PYTHON) -> None:
    """Create our tables."""
    _run(servers, "-m", "notify_database.migrate", python=python)


def create_key(servers: "Servers", tenant: str = "default", scopes: tuple[str, ...] = ("send", "read")) -> str:
    """Create an API key and return it."""
    options = [option for scope in scopes for option in ("--scope", scope)]
    return _run(servers, "-m", "notify_gateway", "keys", "create", "--tenant", tenant, *options).split()[-1]


def bearer(servers: "Servers") -> Mapping[str, str]:
    """Return the header with a new API key."""
    return {"Authorization": f"Bearer {create_key(servers)}"}


def _run(servers: "Servers", *arguments: str, python: Path = PRODUCT_PYTHON) -> str:
    environment = {**os.environ, **servers.service_settings(), "LOG_LEVEL": "WARNING"}
    command = [str(python), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def service_program(
    service: str, number: int = 1, *, port: int | None = None, python: Path = PRODUCT_PYTHON, **settings: str
) -> Program:
    """Return a program that runs one of our services as process `number`, with `settings` in its environment."""
    port = port or free_port()
    if service == "gateway":
        settings |= {"APP_PORT": str(port), "HEALTH_PORT": str(free_port())}
    else:
        settings["HEALTH_PORT"] = str(port)
    return Program(
        service if number == 1 else f"{service} {number}",
        ["env", *(f"{key}={value}" for key, value in settings.items()), str(python), "-m", f"notify_{service}"],
        ready=f"http://127.0.0.1:{port}/readyz",
        sends=service != "gateway",
    )


def maintenance_program(retention_days: int) -> Program:
    """Return the program that drops our partitions that are older than `retention_days`."""
    command = ["env", f"RETENTION_DAYS={retention_days}", str(PRODUCT_PYTHON), "-m", "notify_database.maintenance"]
    return Program("maintenance", command)


def _programs(python: Path, port: int) -> list[Program]:
    return [
        service_program("gateway", port=port, python=python),
        service_program("telegram_sender", python=python),
        service_program("status_writer", python=python),
    ]


SERVICE = Contender(
    key="service",
    name="this service",
    programs=partial(_programs, PRODUCT_PYTHON),
    environment=settings,
    prepare=migrate,
    documentation=["../docs/settings.md"],
    switches="one gateway, one sender, one status writer; `AUTH=off`; quorum queues, confirms, acks after the "
    "confirms; garbage collection thresholds 50,000, 20, 100 and frozen start-up objects; `LOG_LEVEL=WARNING`; no "
    "tracing",
    guarantees="at least once, with the windows in `docs/guarantees.md`; outbox in the transaction; every attempt is "
    "stored",
    sent="""
        SELECT notification_id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float
        FROM deliveries WHERE status = 'sent'
    """,
    count="SELECT count(*) FROM deliveries WHERE status = 'sent'",
    forget="TRUNCATE notifications, deliveries, attempts",
)
SERVICE_WITH_KEYS = replace(
    SERVICE,
    key="service-auth",
    name="this service, AUTH=on",
    environment=lambda servers, latency: {**settings(servers, latency), "AUTH": "on", "RATE_LIMIT": RATE_LIMIT},
    switches="as above, with `AUTH=on`: each request carries an API key, which is checked and rate-limited "
    f"(`RATE_LIMIT={RATE_LIMIT}`, so that the limiter works but refuses nothing)",
    guarantees="as above",
    request_headers=bearer,
)


def service_at(revision: str) -> Contender:
    """Check an earlier commit of this service out, install it, and return it as a contender."""
    checkout = check_out(revision)
    return as_compared(
        replace(
            SERVICE,
            key="service-before",
            name=f"{SERVICE.name} at {checkout.commit[:7]}",
            programs=partial(_programs, checkout.python),
            prepare=partial(migrate, python=checkout.python),
            switches="an earlier commit of this service, run in the same way",
        )
    )


def as_compared(one: Contender) -> Contender:
    """Return this service with as many deliveries in progress at a time as its alternatives may have."""
    return replace(
        one,
        environment=lambda servers, latency: {**one.environment(servers, latency), "CONCURRENCY": str(CONCURRENCY)},
        switches=f"{one.switches}; `CONCURRENCY={CONCURRENCY}`",
    )
