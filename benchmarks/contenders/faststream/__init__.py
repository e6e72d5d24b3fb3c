"""FastStream on RabbitMQ: the request stores the row and publishes; a subscriber sends and updates it."""

import sys

from benchmarks.contenders.contender import CONCURRENCY, Contender, Program, create_table, urls, uvicorn

FASTSTREAM = Contender(
    key="faststream",
    name="FastStream",
    programs=lambda port: [
        uvicorn("faststream.api:app", port),
        Program(
            "worker",
            [sys.executable, "-m", "faststream", "run", "benchmarks.contenders.faststream.worker:app"],
            sends=True,
        ),
    ],
    environment=urls,
    prepare=create_table,
    documentation=[
        "https://faststream.ag2.ai/latest/getting-started/integrations/frameworks/",
        "https://faststream.ag2.ai/latest/getting-started/lifespan/context/",
        "https://faststream.ag2.ai/latest/rabbit/publishing/",
        "https://faststream.ag2.ai/latest/rabbit/prefetch/",
        "https://faststream.ag2.ai/latest/rabbit/ack/",
        "https://fastapi.tiangolo.com/deployment/server-workers/",
    ],
    switches="uvicorn with two workers, one FastStream worker; a broker that FastAPI's lifespan connects; persistent "
    f"messages with confirms, classic durable queue (FastStream's default), a prefetch of {CONCURRENCY}, acks after "
    "the handler; no logger, which would log every message; asyncpg, a pool of 20 connections per process, no reset "
    "query; uvloop; this service's garbage collection; no tracing",
    guarantees="similar: at least once from the broker's confirm on; the row and the message are not written in one "
    "transaction, so that a crash between them leaves a row that is never sent, but whose client saw no 201",
)
