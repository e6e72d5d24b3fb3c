"""Large messages: 16 KB of text, and 64 KiB of HTML."""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, service_program
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.scale.steps import Json, await_sent
from benchmarks.servers import Servers
from benchmarks.steps import BODY, failures, generate, post, warm_up

TEXT = 16_384  # characters, the longest message
HTML = 65_536  # characters, the longest HTML version
RATE = 100.0  # requests a second
SECONDS = 20.0
WARM_UP = 3.0  # seconds
FULL_LOAD_CONNECTIONS = 64  # more of these bodies would exceed the gateway's bound on memory
FULL_LOAD_SECONDS = 5.0
SENDERS = ("telegram_sender", "email_sender")


def messages(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure latency, CPU, memory and disk with short and with long messages."""
    bodies = {
        "16 characters, telegram": BODY,
        "16 KB, telegram": _body("telegram", TEXT),
        "16 KB and 64 KiB of HTML, email": _body("email", TEXT, HTML),
    }
    figures = [_measure(servers, logs, name, body, SECONDS * fraction) for name, body in bodies.items()]
    return {"rate": RATE, "seconds": SECONDS * fraction, "figures": figures}


def _body(channel: str, text: int, html: int = 0) -> str:
    message = {"user_id": 123, "type": channel, "message": _words(text)}
    if html:
        message |= {"subject": "Your order", "email": {"html": f"<p>{_words(html - 7)}</p>"}}
    return json.dumps(message)


def _words(length: int) -> str:
    """Return text that compresses like prose does, roughly, instead of a repeated character."""
    words = " ".join(f"{(number * 7919) % 100_003:x} order of parcel" for number in range(length // 10))
    return words[:length]


def _measure(servers: Servers, logs: Path, name: str, body: str, seconds: float) -> Json:
    contender = replace(
        SERVICE,
        programs=lambda port: [*SERVICE.programs(port), service_program("email_sender")],
        environment=lambda to, latency: {**SERVICE.environment(to, latency), "EMAIL_SLEEP": str(latency)},
    )
    running = Running(contender, servers, 0.0, logs)
    try:
        running.start()
        warm_up(running)
        request = [post(running.url, body=body)]
        sent = len(generate(running.url, RATE, WARM_UP, requests=request)["ids"])
        await_sent(running, sent)
        running.query(SERVICE.forget)
        disk, before = servers.database_disk(), running.cpu()
        seen = generate(running.url, RATE, seconds, requests=request)
        accepted = len(seen["ids"])
        await_sent(running, accepted)
        after = running.cpu()
        times = {str(row[0]): float(str(row[1])) for row in running.query(SERVICE.sent)}
        to_sent = [times[each] - at for each, at in zip(seen["ids"], seen["answered"], strict=True)]
        stored = (servers.database_disk() - disk) / accepted * 1024
        full = generate(running.url, 0, FULL_LOAD_SECONDS, FULL_LOAD_CONNECTIONS, requests=request)
        await_sent(running, accepted + len(full["ids"]))
        say(f"messages: {name}")
        return {
            "name": name, "bytes": len(body),
            "post": percentiles([at - due for due, at in zip(seen["due"], seen["answered"], strict=True)]),
            "to_sent": percentiles(to_sent),
            "cpu": {each: (after[each] - before[each]) / accepted * 1e6 for each in after},
            "accepted": len(full["ids"]) / FULL_LOAD_SECONDS, "failed": failures(seen) + failures(full),
            "stored_kib": stored, "memory": running.peak_memory(),
        }  # fmt: skip
    finally:
        running.stop()
