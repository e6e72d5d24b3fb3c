"""Drivers without a framework, as an engineer would use them who has measured `bare`.

The gateway and the writer commit many rows at a time, the connections send no reset query when they are released, and
the publishes of a batch are confirmed together.
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
    ],
    switches="as `bare`, and: one INSERT for all requests that wait, one UPDATE for all results that wait, one ack "
    "for each of those batches, no reset query (a `Connection` subclass)",
)
