"""PgQueuer: a queue in PostgreSQL alone. The request stores the row and its job in one transaction.

It was chosen among the queues for PostgreSQL because it fetches and completes jobs in batches, so that it should be the
fastest of those for Python.
"""

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.contenders.contender import Contender, Program, create_table, urls, uvicorn

if TYPE_CHECKING:
    from benchmarks.servers import Servers


def _prepare(servers: "Servers") -> None:
    create_table(servers)
    environment = {**os.environ, "PGQUEUER_DSN": servers.database_url}
    # The jobs are as durable as by default; only the log of what was done with them is not.
    for command in (["install", "--durability", "balanced"], ["autovac"]):
        subprocess.run(
            [sys.executable, "-m", "pgqueuer", *command], env=environment, check=True, capture_output=True, text=True
        )


PGQUEUER = Contender(
    key="pgqueuer",
    name="PgQueuer",
    programs=lambda port: [
        uvicorn("pgqueuer.api:app", port),
        Program("worker", [sys.executable, "-m", "benchmarks.contenders.pgqueuer.worker"], sends=True),
    ],
    environment=urls,
    prepare=_prepare,
    documentation=[
        "https://janbjorge.github.io/pgqueuer/",
        "https://janbjorge.github.io/pgqueuer/guides/performance-tuning/",
        "https://github.com/janbjorge/pgqueuer/blob/main/examples/fastapi_usage.py",
        "https://fastapi.tiangolo.com/deployment/server-workers/",
    ],
    switches="uvicorn with two workers, one `PgQueuer.run(batch_size=100)`; a connection of its own for the queue, and "
    "a pool of 20 for the jobs; durable jobs and an unlogged log (`--durability balanced`), `pgq autovac`; asyncpg, "
    "no reset query; no limit of concurrent jobs; no RabbitMQ; uvloop; this service's garbage collection; no tracing",
    guarantees="stronger in one point: the row and the job are committed together, so that no row can be left "
    "behind; otherwise similar: at least once, a job of a dead worker is taken again after 30 s",
    forget="TRUNCATE notifications, pgqueuer_log",
)
