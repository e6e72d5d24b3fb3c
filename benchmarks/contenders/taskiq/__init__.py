"""Taskiq on RabbitMQ (taskiq-aio-pika): the request stores the row and kicks a task; a worker sends and updates it."""

import sys

from benchmarks.contenders.contender import CONCURRENCY, Contender, Program, create_table, urls, uvicorn

WORKERS = 2  # the default

TASKIQ = Contender(
    key="taskiq",
    name="Taskiq",
    programs=lambda port: [
        uvicorn("taskiq.api:app", port),
        Program(
            "worker",
            [
                sys.executable, "-m", "taskiq", "worker", "benchmarks.contenders.taskiq.tasks:broker",
                "--workers", str(WORKERS), "--max-async-tasks", str(CONCURRENCY // WORKERS), "--log-level", "WARNING",
            ],
            sends=True,
        ),
    ],
    environment=urls,
    prepare=create_table,
    documentation=[
        "https://taskiq-python.github.io/guide/getting-started.html",
        "https://taskiq-python.github.io/guide/cli.html",
        "https://taskiq-python.github.io/guide/state-and-deps.html",
        "https://taskiq-python.github.io/framework_integrations/taskiq-with-fastapi.html",
        "https://github.com/taskiq-python/taskiq-aio-pika",
        "https://fastapi.tiangolo.com/deployment/server-workers/",
    ],
    switches="uvicorn with two workers, two Taskiq workers (the default) with "
    f"{CONCURRENCY // WORKERS} tasks at a time and a `qos` of {CONCURRENCY // WORKERS} each; "
    "persistent messages with confirms, quorum queue (taskiq-aio-pika's default), acks after the task; no result "
    "backend; asyncpg, a pool of 20 connections per process, no reset query; uvloop; this service's garbage "
    "collection; no tracing",
    guarantees="similar: at least once from the broker's confirm on; a task that raises is acknowledged and not "
    "tried again unless a retry middleware is added; the row and the message are not written in one transaction",
)  # fmt: skip
