"""An hour at 70 % load, with old partitions dropped and a transaction that stays open."""

import time
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.arithmetic import percentiles
from benchmarks.contenders.service import SERVICE, maintenance_program
from benchmarks.figures import ContenderFigures
from benchmarks.measure import find_end_to_end
from benchmarks.progress import say
from benchmarks.running import Running, memory
from benchmarks.scale.filling import Fill, store
from benchmarks.scale.load_figures import SOAK_SHARE, compared
from benchmarks.scale.stored import old_partitions
from benchmarks.servers import Servers
from benchmarks.steps import failures, generate, warm_up

MINUTES = 60
LATENCY = 0.2  # seconds
SEARCH_STEP = 6.0  # seconds
TRIAL_STEP, TRIAL_MINUTE = 1.5, 5.0  # seconds, if only a fraction is measured
STORED, WEEKS, USERS = 2_000_000, 8, 100_000  # before the hour begins
RETENTIONS = {0.1: 36, 0.6: 15}
"""The retention in days that applies from a fraction of the time on; the second drop meets the open transaction."""
OPENED, CLOSED = 0.25, 0.75  # fractions of the time at which the transaction begins and ends
SENT_BETWEEN = """
    SELECT count(*) FROM deliveries
    WHERE status = 'sent' AND updated_at >= to_timestamp({began}) AND updated_at < to_timestamp({ended})
"""
DEAD_ROWS = "SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables WHERE relname ~ '^(deliveries|outbox)'"

Json = dict[str, Any]


def soak(servers: Servers, logs: Path, fraction: float) -> Json:
    """Load the service for an hour, and compare the last five minutes with the first."""
    trial = fraction < 1
    rate = SOAK_SHARE * _highest_rate(servers, logs, TRIAL_STEP if trial else SEARCH_STEP)
    running = Running(SERVICE, servers, LATENCY, logs)
    minutes = max(2, round(MINUTES * fraction))
    try:
        servers.reset()
        SERVICE.prepare(servers)
        store(servers, Fill(int(STORED * fraction), WEEKS, users=USERS))
        running.start(fresh=False)
        generate(running.url, rate, 10.0)
        events = _Events(running, minutes)
        parts = []
        for minute in range(minutes):
            events.advance(minute)
            parts.append(_minute(running, rate, minute, TRIAL_MINUTE if trial else 60.0))
            say(f"soak: minute {minute + 1} of {minutes}, {parts[-1]['sent']:,.0f} sent/s")
        events.end()
        return {"rate": rate, "minutes": parts, "drops": events.drops, "compared": compared(parts), "opened": OPENED}
    finally:
        running.stop()


def _highest_rate(servers: Servers, logs: Path, step: float) -> float:
    running, figures = Running(SERVICE, servers, LATENCY, logs), ContenderFigures(SERVICE.name, LATENCY, 1)
    try:
        running.start()
        warm_up(running)
        find_end_to_end(running, figures, step, None, time.monotonic() + 120)
    finally:
        running.stop()
    return figures.end_to_end


class _Events:
    """The events of the hour: drops of old partitions, and the open transaction."""

    def __init__(self, running: Running, minutes: int) -> None:
        self._running = running
        self._minutes = minutes
        self._open: psycopg.Connection[tuple[object, ...]] | None = None
        self._pending = {round(at * minutes): days for at, days in RETENTIONS.items()}
        self.drops: list[Json] = []

    def advance(self, minute: int) -> None:
        """Do what is due at the beginning of a minute."""
        if minute == round(OPENED * self._minutes):
            self._open = psycopg.connect(self._running.servers.database_url)
            # A report reads like this; its snapshot keeps dead rows from being removed.
            self._open.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._open.execute("SELECT count(*) FROM deliveries WHERE status = 'failed'")
        if minute == round(CLOSED * self._minutes):
            self._close()
        if minute in self._pending:
            self._drop(minute, self._pending.pop(minute))
        self._note_completed(minute)

    def _drop(self, minute: int, days: int) -> None:
        if "maintenance" in self._running.processes:
            self._running.stop("maintenance")
        before = old_partitions(self._running, days)
        self._running.launch(maintenance_program(days))
        self.drops.append({"minute": minute, "days": days, "partitions": before, "gone_by_minute": None})

    def _note_completed(self, minute: int) -> None:
        for drop in self.drops:
            pending = drop["gone_by_minute"] is None and minute > drop["minute"]
            if pending and not old_partitions(self._running, drop["days"]):
                drop["gone_by_minute"] = minute

    def end(self) -> None:
        """Finish what is still open."""
        self._close()
        self._note_completed(self._minutes)

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _minute(running: Running, rate: float, number: int, seconds: float) -> Json:
    before, began = running.cpu(), time.time()
    seen = generate(running.url, rate, seconds, seed=number)
    after, ended = running.cpu(), time.time()
    [[sent]] = running.query(SENT_BETWEEN.format(began=began, ended=ended))
    [[dead]] = running.query(DEAD_ROWS)
    accepted = len(seen["ids"])
    names = [name for name in running.processes if name != "maintenance"]
    return {
        "accepted": accepted / seconds, "sent": int(str(sent)) / (ended - began), "failed": failures(seen),
        "post": percentiles([at - due for due, at in zip(seen["due"], seen["answered"], strict=True)]),
        "cpu": sum(after[name] - before[name] for name in before if name in after) / accepted * 1e6,
        "memory": {name: memory(running.processes[name].pid) for name in names},
        "dead_rows": int(str(dead or 0)), "broker_disk": running.servers.broker_disk(),
    }  # fmt: skip
