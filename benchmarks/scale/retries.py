"""Temporary failures: three channels, of whose calls none or 30 % fail, with up to four attempts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, service_program
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.scale.steps import Json, await_, count_rows
from benchmarks.servers import Servers
from benchmarks.steps import BODY, failures, generate, post

CHANNELS = ("telegram", "email", "webhook")
PROBABILITIES = (0.0, 0.3)
ATTEMPTS = 4
RETRY_DELAY = 1.0  # seconds before the second attempt; it doubles with each failure
RATE = 200.0  # notifications a second
SECONDS = 30.0
LATENCY = 0.05  # seconds
FINAL_TIMEOUT = 120.0  # seconds
BODY_OF_THREE = json.dumps({**json.loads(BODY), "type": None, "channels": CHANNELS, "subject": "Your code"})
OPEN = "SELECT count(*) FROM deliveries WHERE status IN ('pending', 'retrying')"
FINAL = """
    SELECT delivery.notification_id::text, max(extract(epoch FROM attempt.finished_at)::float)
    FROM deliveries AS delivery JOIN attempts AS attempt ON attempt.delivery_id = delivery.id
    WHERE {which} GROUP BY 1
"""


def retries(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure what retries cost, and what they do to the deliveries that need none."""
    figures = [_measure(servers, logs, probability, SECONDS * fraction) for probability in PROBABILITIES]
    return {"rate": RATE, "channels": len(CHANNELS), "max_attempts": ATTEMPTS, "figures": figures}


def _measure(servers: Servers, logs: Path, probability: float, seconds: float) -> Json:
    settings = {
        "ERROR_PROBABILITY": str(probability), "MAX_RETRIES": str(ATTEMPTS), "RETRY_DELAY": str(RETRY_DELAY),
        **{f"{channel.upper()}_SLEEP": str(LATENCY) for channel in CHANNELS},
    }  # fmt: skip
    contender = replace(
        SERVICE,
        programs=lambda port: [
            service_program("gateway", port=port),
            service_program("status_writer"),
            *(service_program(f"{channel}_sender") for channel in CHANNELS),
        ],
        environment=lambda to, latency: {**SERVICE.environment(to, latency), **settings},
    )
    running = Running(contender, servers, 0.0, logs)
    try:
        running.start()
        body = BODY_OF_THREE.replace('"type": null, ', "")
        generate(running.url, RATE, 3.0, requests=[post(running.url, body=body)])
        _await_final(running)
        running.query(SERVICE.forget)
        before = running.cpu()
        seen = generate(running.url, RATE, seconds, requests=[post(running.url, body=body)])
        _await_final(running)
        after = running.cpu()
        deliveries, attempts = count_rows(running, "deliveries"), count_rows(running, "attempts")
        first = _ended(running, "attempt.attempt = 1")
        last = _ended(running, "true")
        say(f"retries: probability {probability:g}")
        return {
            "probability": probability, "accepted": len(seen["ids"]), "failed_requests": failures(seen),
            "deliveries": deliveries, "attempts": attempts,
            "failed": deliveries - int(str(running.query(SERVICE.count)[0][0])),
            "first_attempt": percentiles(_after(seen, first)), "final": percentiles(_after(seen, last)),
            "cpu": {each: (after[each] - before[each]) / deliveries * 1e6 for each in after},
        }  # fmt: skip
    finally:
        running.stop()


def _await_final(running: Running) -> None:
    await_(running, lambda: running.query(OPEN) == [(0,)], FINAL_TIMEOUT)


def _ended(running: Running, which: str) -> dict[str, float]:
    """Return when the last of those attempts ended, by notification."""
    return {str(row[0]): float(str(row[1])) for row in running.query(FINAL.format(which=which))}


def _after(seen: dict[str, Any], ended: dict[str, float]) -> list[float]:
    """Return the seconds from each 201 until the last of the given attempts had ended."""
    accepted = zip(seen["ids"], seen["answered"], strict=True)
    return [ended[each] - at for each, at in accepted if each in ended]
