"""Drivers without a framework: aio-pika and asyncpg, in the same three processes as this service.

`bare` has one publish, one statement and one ack per message. `bare-strong` is what an engineer would write who has
measured the first one: see `bare_strong`.
"""

import sys

from benchmarks.contenders.contender import CONCURRENCY, Contender, Program, create_table, urls, uvicorn

BARE = Contender(
    key="bare",
    name="bare drivers",
    programs=lambda port: [
        uvicorn("bare.app:app", port, workers=1),
        Program("sender", [sys.executable, "-m", "benchmarks.contenders.bare.app", "sender"], sends=True),
        Program("writer", [sys.executable, "-m", "benchmarks.contenders.bare.app", "writer"], sends=True),
    ],
    environment=urls,
    prepare=create_table,
    documentation=[
        "https://docs.aio-pika.com/quick-start.html",
        "https://docs.aio-pika.com/rabbitmq-tutorial/2-work-queues.html",
        "https://magicstack.github.io/asyncpg/current/usage.html#connection-pools",
    ],
    switches="one API process, one sender, one writer; FastAPI; aio-pika with confirms, quorum queues and a prefetch "
    f"of {CONCURRENCY}; asyncpg's pool of 10 connections (the default); uvloop; Python's default garbage collection; "
    "no tracing",
    guarantees="similar: at least once from the broker's confirm on; the row and the message are not written in one "
    "transaction, so that a crash between them leaves a row that is never sent, but whose client saw no 201",
)
