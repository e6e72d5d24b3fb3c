"""The system that faults act on, and the record that a fault leaves for the audit."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from notify_common.contracts.channels import Channel
from notify_local.stack import SERVICES
from support.processes import System

from chaos.load import Load
from chaos.mail_server import MailServer

REPLICAS = dict.fromkeys(SERVICES, 2)
PROGRAMS = tuple(name for service in SERVICES for name in (service, f"{service}-2"))
PAUSE = 40.0  # seconds; an outbox lease lasts 30, and RabbitMQ closes a silent connection after 20 to 30


@dataclass
class Fault:
    """A record of an injected fault; times are in seconds since the epoch."""

    name: str
    began: float
    cuts_all: bool
    """True if every connection to RabbitMQ was lost."""
    killed: dict[int, str] = field(default_factory=dict)
    """The names of the processes killed by SIGKILL, by process id; those stopped by SIGTERM are not included."""
    paused: dict[int, str] = field(default_factory=dict)
    """The names of the processes that were paused until they had lost their connections and leases, by process id."""
    of_broker_node: bool = False
    """True if nodes of a RabbitMQ cluster failed, which moves consumers and queue leaders to other nodes."""
    of_database: bool = False
    """True if the primary of a PostgreSQL cluster failed, and another member took over."""
    refused: Channel | None = None
    """The channel whose queue accepted nothing. The other channels must not wait for it."""
    ended: float = 0.0
    accepted: int = 0
    """The number of notifications accepted from the start of the fault until the system recovered."""
    recovered_after: float = 0.0
    """The seconds that a notification posted at the end of the fault took to reach a final status."""
    peaks: dict[str, int] = field(default_factory=dict)
    """The highest resident memory of each process in bytes, if it was measured."""
    complaints: list[str] = field(default_factory=list)
    """What the fault itself found wrong."""


@dataclass
class Scene:
    """The system that faults act on. Failing providers recover after `outage` seconds, other faults after `hold`."""

    system: System
    simulator_folder: Path
    rng: random.Random
    hold: float
    outage: float
    load: Load
    large: int = 600
    """The number of e-mails with 64 KiB bodies."""
    mail_server: MailServer | None = None

    def management(self) -> httpx.AsyncClient:
        """Return a client of RabbitMQ's management API."""
        url = self.system.addresses()["RABBITMQ_MANAGEMENT_URL"]
        return httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)


Act = Callable[[Scene, Fault], Awaitable[None]]
"""Injects a fault, and returns when it is over; killed processes may still be restarting."""
