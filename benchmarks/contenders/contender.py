"""Contenders: their processes and queries, and the documentation that their configuration follows."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.servers import Servers

API_WORKERS = 2  # one per core; https://fastapi.tiangolo.com/deployment/server-workers/
POOL_SIZE = 20  # connections; without overflow, because SQLAlchemy closes overflow connections when they are returned
# Deliveries in progress at a time. This service's default of 500 would bound the rate at a latency of 0.2 s to 2,500/s.
CONCURRENCY = 1_000
SENT = "SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float FROM notifications WHERE {sent}"
TABLE = """
    CREATE TABLE notifications (
        id uuid PRIMARY KEY, user_id bigint NOT NULL, message text NOT NULL, type text NOT NULL, status text NOT NULL,
        created_at timestamptz NOT NULL
    )
"""

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Program:
    """A process of a contender."""

    name: str
    command: Sequence[str]
    ready: str | None = None
    """The URL that returns 2xx once the process is ready; None if there is no such URL."""
    sends: bool = False
    """True if the process is not needed for accepting requests; it is then left out when only that is measured."""
    workers: int = 0
    """The number of uvicorn's workers; its URL is ready as soon as one of them is."""


@dataclass(frozen=True)
class Contender:
    """A system to measure: how to start it, how to find out what it has sent, and why it is configured as it is."""

    key: str
    """The name for `--only`."""
    name: str
    programs: Callable[[int], Sequence[Program]]
    """Returns the contender's processes, with the API on the given port."""
    environment: "Callable[[Servers, float], Environment]"
    """Returns the processes' environment for a simulated provider latency in seconds."""
    prepare: "Callable[[Servers], None]"
    """Creates the tables in an empty database."""
    documentation: Sequence[str]
    """The pages that the configuration follows."""
    switches: str
    """What is switched on and off: processes, queues, acknowledgements, garbage collection."""
    guarantees: str
    """What is guaranteed, compared with this service."""
    sent: str = SENT.format(sent="status = 'sent'")
    """SQL that returns the id of each sent notification and the time at which that status was committed."""
    count: str = "SELECT count(*) FROM notifications WHERE status = 'sent'"
    forget: str = "TRUNCATE notifications"
    request_headers: "Callable[[Servers], Mapping[str, str]] | None" = None
    """Returns headers for the requests, once the tables exist."""
    variants: "Sequence[Contender]" = ()
    """Configurations of which the one that sends more is measured; it is chosen for each latency."""
    unavailable: Callable[[], str | None] = lambda: None
    """Returns why the contender cannot run on this machine; None if it can."""


def urls(servers: "Servers", latency: float) -> Environment:
    """Return the environment of an alternative: both servers' URLs and the provider's latency."""
    return {
        "DATABASE_URL": servers.database_url, "RABBITMQ_URL": servers.rabbitmq_url, "LATENCY": str(latency)
    }  # fmt: skip


def create_table(servers: "Servers") -> None:
    """Create the table of an alternative."""
    servers.execute(TABLE)


def uvicorn(app: str, port: int, workers: int = API_WORKERS) -> Program:
    """Return uvicorn, run as documented but without the access log, which would cost every contender the same."""
    command = [
        sys.executable, "-m", "uvicorn", f"benchmarks.contenders.{app}", "--port", str(port), "--no-access-log",
        "--workers", str(workers),
    ]  # fmt: skip
    return Program("api", command, ready=f"http://127.0.0.1:{port}/openapi.json", workers=workers)
