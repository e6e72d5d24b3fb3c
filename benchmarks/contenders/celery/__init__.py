"""Celery on RabbitMQ: the request stores the row and calls `task.delay`; a worker sends and updates it.

Its documentation offers two pools: processes (prefork, the default), and greenlets (gevent) for tasks that mostly wait.
A gevent worker uses one core, so there are two of them.
The better one is measured at each latency; `--only celery-prefork` and `--only celery-gevent` measure one of them.
"""

import sys
from dataclasses import replace

from benchmarks.contenders.contender import CONCURRENCY, Contender, Program, create_table, urls, uvicorn

PROCESSES = 2  # one per core, which is the default; also the number of gevent workers, which have one process each
# "If you have many short-running tasks … Values like 50 or 150 might make sense … Say 64, or 128."
PREFETCH_MULTIPLIER = 64
# Together, the workers take as many messages at a time as the other contenders.
GEVENT = ("--pool", "gevent", "--concurrency", str(CONCURRENCY // PROCESSES), "--prefetch-multiplier", "1")


def _worker(*pool: str, number: int = 1) -> Program:
    return Program(
        "worker" if number == 1 else f"worker {number}",
        [
            sys.executable, "-m", "celery", "-A", "benchmarks.contenders.celery.tasks", "worker",
            "--loglevel", "WARNING", "--hostname", f"worker{number}@%h", *pool,
        ],
        sends=True,
    )  # fmt: skip


CELERY_PREFORK = Contender(
    key="celery-prefork",
    name="Celery, prefork",
    programs=lambda port: [
        uvicorn("celery.api:app", port),
        _worker("--concurrency", str(PROCESSES), "--prefetch-multiplier", str(PREFETCH_MULTIPLIER)),
    ],
    environment=urls,
    prepare=create_table,
    documentation=[
        "https://docs.celeryq.dev/en/stable/getting-started/first-steps-with-celery.html",
        "https://docs.celeryq.dev/en/stable/userguide/optimizing.html",
        "https://docs.celeryq.dev/en/stable/userguide/concurrency/gevent.html",
        "https://docs.celeryq.dev/en/stable/userguide/workers.html",
        "https://docs.celeryq.dev/en/stable/userguide/tasks.html",
        "https://docs.celeryq.dev/projects/kombu/en/stable/reference/kombu.transport.pyamqp.html",
        "https://fastapi.tiangolo.com/deployment/server-workers/",
        "https://fastapi.tiangolo.com/tutorial/sql-databases/",
        "https://docs.sqlalchemy.org/en/21/tutorial/data_update.html",
    ],
    switches=f"uvicorn with two workers; prefork with {PROCESSES} processes, `worker_prefetch_multiplier` "
    f"{PREFETCH_MULTIPLIER}; `broker_pool_limit` 40, one for each of FastAPI's threads; late acks, publisher "
    "confirms, no result backend, no AMQP heartbeats; classic durable queue (Celery's default); SQLAlchemy on psycopg "
    "(ORM for the INSERT, Core for the UPDATE); this service's garbage collection; no tracing",
    guarantees="similar: at least once from the broker's confirm on; the row and the message are not written in one "
    "transaction, so that a crash between them leaves a row that is never sent, but whose client saw no 201",
)
CELERY_GEVENT = replace(
    CELERY_PREFORK,
    key="celery-gevent",
    name="Celery, gevent",
    programs=lambda port: [
        uvicorn("celery.api:app", port),
        *(_worker(*GEVENT, number=number) for number in range(1, PROCESSES + 1)),
    ],
    switches=CELERY_PREFORK.switches.replace(
        f"prefork with {PROCESSES} processes, `worker_prefetch_multiplier` {PREFETCH_MULTIPLIER}",
        f"gevent with {PROCESSES} workers of {CONCURRENCY // PROCESSES} greenlets, `worker_prefetch_multiplier` 1",
    ),
)
CELERY = replace(
    CELERY_PREFORK,
    key="celery",
    name="Celery",
    variants=(CELERY_PREFORK, CELERY_GEVENT),
    switches=CELERY_PREFORK.switches.replace(
        "prefork with",
        f"the better of gevent with {PROCESSES} workers of {CONCURRENCY // PROCESSES} greenlets "
        "(`worker_prefetch_multiplier` 1) and prefork with",
    ),
)
