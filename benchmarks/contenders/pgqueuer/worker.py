"""The worker: its job sends the notification and stores its status.

It calls `run` itself instead of the command `pgq run`, which cannot start with the typer that is locked here.
"""

import asyncio
import os
from uuid import UUID

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

from benchmarks.contenders.plain_database import create_pool, mark_sent
from benchmarks.contenders.tuning import collect_garbage_less_often

LATENCY = float(os.environ["LATENCY"])  # seconds
BATCH_SIZE = 100  # "Increase batch_size when jobs are short-lived (< 1 s)"; the default is 10


async def main() -> None:
    """Work with one connection for the queue and a pool for the jobs, as the page on performance recommends."""
    collect_garbage_less_often()
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    async with create_pool() as pool:
        queuer = PgQueuer(AsyncpgDriver(connection))

        @queuer.entrypoint("send")  # type: ignore[untyped-decorator]  # it is not installed where types are checked
        async def send(job: Job) -> None:
            await asyncio.sleep(LATENCY)
            await mark_sent(pool, UUID((job.payload or b"").decode()))

        await queuer.run(batch_size=BATCH_SIZE)


if __name__ == "__main__":
    uvloop.run(main())
