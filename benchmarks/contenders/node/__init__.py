"""Another language: Node.js with Fastify, node-postgres and amqplib, without a queue framework.

`package-lock.json` pins the packages. They are installed into `node_modules` when the contender is first run.
"""

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contenders.contender import Contender, Program, create_table, urls

if TYPE_CHECKING:
    from benchmarks.servers import Servers

FOLDER = Path(__file__).parent
OLDEST = 20  # Fastify 5 needs this major version


def _unavailable() -> str | None:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return f"Node.js {OLDEST} or newer and npm are needed"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return (
        None if int(version.lstrip("v").split(".")[0]) >= OLDEST else f"Node.js {OLDEST} is needed, this is {version}"
    )


def _prepare(servers: "Servers") -> None:
    create_table(servers)
    installed = FOLDER / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (FOLDER / "package-lock.json").stat().st_mtime:
        subprocess.run(
            [str(shutil.which("npm")), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=FOLDER,
            check=True,
            capture_output=True,
        )


NODE = Contender(
    key="node",
    name="Node.js",
    programs=lambda port: [
        Program(
            "api", ["env", f"PORT={port}", "node", str(FOLDER / "api.mjs")], ready=f"http://127.0.0.1:{port}/ready"
        ),
        Program("worker", ["node", str(FOLDER / "worker.mjs")], sends=True),
    ],
    environment=lambda servers, latency: {**urls(servers, latency), "NODE_ENV": "production"},
    prepare=_prepare,
    documentation=[
        "https://fastify.dev/docs/latest/Guides/Getting-Started/",
        "https://fastify.dev/docs/latest/Reference/Validation-and-Serialization/",
        "https://fastify.dev/docs/latest/Guides/Recommendations/#capacity",
        "https://amqp-node.github.io/amqplib/channel_api.html#connect",
        "https://amqp-node.github.io/amqplib/channel_api.html#confirmchannel",
        "https://node-postgres.com/features/pooling",
        "https://node-postgres.com/apis/pool",
        "https://node-postgres.com/features/queries#prepared-statements",
    ],
    switches="one API process, one worker; Fastify with JSON schemas for requests and responses; amqplib with "
    "confirms, `noDelay`, quorum queue and a prefetch of 1000; node-postgres with prepared statements and a fixed pool "
    "of 20; V8's default garbage collection; no tracing",
    guarantees="similar: at least once from the broker's confirm on; the row and the message are not written in one "
    "transaction; nothing reconnects after a lost connection, which ends the process",
    unavailable=_unavailable,
)
