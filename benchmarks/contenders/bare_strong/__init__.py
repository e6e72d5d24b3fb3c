"""Drivers without a framework, as an engineer would use them who has measured `bare`.

The gateway and the writer commit many rows at a time, the requests of a batch publish at the same time, so that the
broker can confirm several messages at once, the connections send no reset query when they are released, and garbage is
collected as rarely as in this service.
"""

import sys
from dataclasses import replace

from benchmarks.contenders.bare import BARE
from benchmarks.contenders.contender import Program, uvicorn

BARE_STRONG = replace(
    BARE,
    key="bare-strong",
    name="bare drivers, batched",
    programs=lambda port: [
        uvicorn("bare_strong.app:app", port, workers=1),
        Program("sender", [sys.executable, "-m", "benchmarks.contenders.bare_strong.app", "sender"], sends=True),
        Program("writer", [sys.executable, "-m", "benchmarks.contenders.bare_strong.app", "writer"], sends=True),
    ],
    documentation=[
        *BARE.documentation,
        "https://magicstack.github.io/asyncpg/current/api/index.html#asyncpg.pool.create_pool",
        "https://www.rabbitmq.com/docs/confirms",
        "https://docs.python.org/3/library/gc.html#gc.freeze",
    ],
    switches="as `bare`, and: one INSERT for all requests that wait, one UPDATE for all results that wait, one ack "
    "for each of those batches, no reset query (a `Connection` subclass), this service's garbage collection instead of "
    "Python's default (thresholds 50,000, 20, 100 and frozen start-up objects)",
)
