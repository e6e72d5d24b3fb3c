"""`make bench-scale`: measure this service with a large backlog, many stored rows, and multiple processes."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks import scale_plots, scale_tables, tables
from benchmarks.contenders.ports import free_port
from benchmarks.contenders.service import SERVICE, service_program
from benchmarks.paths import PROJECT
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.servers import Servers, circumstances, log_folder, running_servers, write_json
from benchmarks.steps import failures, generate
from benchmarks.stored import stored

RESULTS = PROJECT / "benchmarks" / "results"
FILL_STEP = 20.0  # seconds of load between two checks of the backlog
CATCH_UP_TIMEOUT = 300.0  # seconds
POLL = 0.5  # seconds

WAITING = (10_000, 100_000, 1_000_000)
WAITING_RATE = 1400.0  # requests a second while the backlog is measured; about what one sender can send
WAITING_LATENCY = 0.2  # seconds
WAITING_CONCURRENCY = 300  # concurrent provider calls; at that latency, these make at most 1,500 calls a second
WAITING_SECONDS = 20.0
SETTLING = 4.0  # seconds

DELIVERY_QUEUE = "notifications.telegram"
RESULTS_WAITING = 100_000
DELIVERIES_WAITING = 80_000
SENDER_LATENCY = 0.2  # seconds
SENDER_CONCURRENCY = 1000
SENDERS = (1, 2, 4, 8)
SCALING_LATENCY = 1.0  # seconds
SCALING_SECONDS = 14.0
TOGETHER_RATE = 600.0  # requests a second to each of the two gateways
TOGETHER_SECONDS = 20.0
TOGETHER_LATENCY = 0.05  # seconds

Json = dict[str, object]


@contextmanager
def gateway_alone(servers: Servers, logs: Path, latency: float = 0.0) -> Iterator[Running]:
    """Run only the gateway, on empty servers; the caller starts the other processes."""
    running = Running(SERVICE, servers, latency, logs, without_sending=True)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def backlog(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure CPU per notification and memory at a steady rate, with backlogs of several sizes."""
    figures = []
    with gateway_alone(servers, logs, WAITING_LATENCY) as running:
        for count in WAITING:
            _fill(running, int(count * fraction))
            say(f"backlog: {_waiting(running):,}")
            _settle(running)
            running.launch(
                service_program("telegram_sender", CONCURRENCY=str(WAITING_CONCURRENCY)),
                service_program("status_writer"),
            )
            generate(running.url, WAITING_RATE, SETTLING)
            figures.append(_measure_backlog(running, int(count * fraction)))
            running.stop("telegram_sender", "status_writer")
    return {
        "rate": WAITING_RATE, "seconds": WAITING_SECONDS, "latency": WAITING_LATENCY,
        "concurrency": WAITING_CONCURRENCY, "figures": figures,
    }  # fmt: skip


def status_writer_alone(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure how fast one status writer works through queued results while nothing else runs."""
    with gateway_alone(servers, logs) as running:
        running.launch(service_program("telegram_sender"))
        count = _fill(running, int(RESULTS_WAITING * fraction))
        _await_attempted(running, count)
        running.stop()
        _settle(running)
        running.launch(service_program("status_writer"))
        before = running.cpu()
        _await_sent(running, count)
        return {
            "results": count, "rate": _steady_rate(_times(running, "pg_xact_commit_timestamp(xmin)", "deliveries")),
            "cpu": _per_item(before, running.cpu(), count),
        }  # fmt: skip


def sender_alone(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure how fast one sender with a slow provider works through a queue while nothing else runs."""
    with gateway_alone(servers, logs, SENDER_LATENCY) as running:
        count = _fill(running, int(DELIVERIES_WAITING * fraction))
        running.stop()
        running.launch(service_program("telegram_sender", CONCURRENCY=str(SENDER_CONCURRENCY)))
        before = running.cpu()
        _await_attempted(running, count)
        cpu, memory = _per_item(before, running.cpu(), count), running.peak_memory()
        running.stop()
        running.launch(service_program("status_writer"))
        _await_sent(running, count)
        return {
            "deliveries": count, "latency": SENDER_LATENCY, "concurrency": SENDER_CONCURRENCY,
            "rate": _steady_rate(_times(running, "finished_at", "attempts")), "cpu": cpu, "memory": memory,
        }  # fmt: skip


def scaling(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure how the send rate grows with the number of senders, using a slow provider."""
    figures = []
    for senders in SENDERS:
        with gateway_alone(servers, logs, SCALING_LATENCY) as running:
            count = _fill(running, int(senders * 500 * SCALING_SECONDS * fraction))
            running.launch(
                service_program("status_writer"),
                *(service_program("telegram_sender", number) for number in range(1, senders + 1)),
            )
            _await_sent(running, count)
            rate = _steady_rate(_times(running, "pg_xact_commit_timestamp(xmin)", "deliveries"))
            figures.append({"senders": senders, "deliveries": count, "rate": rate})
            say(f"senders: {senders}, {rate:,.0f}/s")
    return {"latency": SCALING_LATENCY, "figures": figures}


def side_by_side(servers: Servers, logs: Path, fraction: float) -> Json:
    """Run two gateways, four senders and two status writers together, and count notifications and provider calls."""
    ledgers, second_port = logs / "ledgers", free_port()
    with gateway_alone(servers, logs, TOGETHER_LATENCY) as running:
        running.launch(
            service_program("gateway", 2, port=second_port),
            *(service_program("telegram_sender", number, SIMULATOR_FOLDER=str(ledgers)) for number in range(1, 5)),
            *(service_program("status_writer", number) for number in (1, 2)),
        )
        urls = [running.url, running.url.replace(f":{running.port}/", f":{second_port}/")]
        with ThreadPoolExecutor(len(urls)) as pool:
            seconds = TOGETHER_SECONDS * fraction
            seen = list(pool.map(lambda url: generate(url, TOGETHER_RATE, seconds), urls))
        accepted = {id_ for each in seen for id_ in each["ids"]}
        _await_sent(running, len(accepted))
        _await(running, lambda: not _waiting(running))
        [[sent]] = running.query(SERVICE.count)
        attempts = _count(running, "attempts")
    calls = [line for file in ledgers.glob("*.ledger") for line in file.read_text().splitlines()]
    return {
        "gateways": 2, "senders": 4, "status_writers": 2, "rate": TOGETHER_RATE * 2, "accepted": len(accepted),
        "failed": sum(map(failures, seen)), "sent": sent, "attempts": attempts, "provider_calls": len(calls),
    }  # fmt: skip


SECTIONS: dict[str, Callable[[Servers, Path, float], Json]] = {
    "status_writer": status_writer_alone,
    "sender": sender_alone,
    "scaling": scaling,
    "side_by_side": side_by_side,
    "backlog": backlog,
    "stored": stored,
}


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), help="run only these parts, without writing results"
    )
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="multiply all counts by this, for a trial run (default: 1)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    options = parser.parse_args()
    began = time.monotonic()
    sections: dict[str, Json] = {}
    with log_folder() as logs, running_servers() as servers:
        versions = servers.versions()
        for name in options.only or SECTIONS:
            say(f"{name}: {SECTIONS[name].__doc__}")
            sections[name] = SECTIONS[name](servers, logs, options.fraction)
            say(scale_tables.SECTIONS[name](sections[name]))
    results = {**circumstances(began, versions), "fraction": options.fraction, **sections}
    if options.only or options.fraction != 1:
        return
    write_json(options.results / "scale.json", results)
    scale_plots.scale(results, options.results)
    if options.results == RESULTS:
        tables.write("scale", scale_tables.scale(results))
    say(f"Results written to {options.results}")


def _fill(running: Running, count: int) -> int:
    """Post until the backlog is at least `count`, and return the number of stored notifications."""
    while (missing := count - _waiting(running)) > 0:
        generate(running.url, 0, min(FILL_STEP, max(missing / 5000, 0.2)))
    while _count(running, "outbox"):
        time.sleep(POLL)
    return _count(running, "notifications")


def _settle(running: Running) -> None:
    """Let PostgreSQL clean up after the backlog is filled, so that this work is not measured."""
    running.query("VACUUM (ANALYZE) notifications, deliveries, attempts")
    running.query("CHECKPOINT")
    while running.query("SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"):
        time.sleep(POLL)


def _measure_backlog(running: Running, waiting: int) -> Json:
    before = running.cpu()
    seen = generate(running.url, WAITING_RATE, WAITING_SECONDS)
    after = running.cpu()
    began, ended = seen["began"], seen["began"] + WAITING_SECONDS
    [[sent_in_time, sent_in_total]] = running.query(
        f"SELECT count(*) FILTER (WHERE at < to_timestamp({ended})), count(*) "
        "FROM (SELECT pg_xact_commit_timestamp(xmin) AS at FROM deliveries WHERE status = 'sent') AS sent "
        f"WHERE at >= to_timestamp({began})"
    )
    accepted, sent = len(seen["ids"]), int(str(sent_in_total))
    items = {"gateway": accepted, "telegram_sender": sent, "status_writer": sent}
    cpu = {name: (after[name] - before[name]) / items.get(name, (accepted + sent) / 2) * 1e6 for name in after}
    return {
        "waiting": waiting, "waiting_at_the_end": _waiting(running), "failed": failures(seen),
        "accepted": sum(at < ended for at in seen["answered"]) / WAITING_SECONDS,
        "sent": int(str(sent_in_time)) / WAITING_SECONDS,
        "cpu": cpu | {tables.LOAD_GENERATOR: seen["cpu"] / accepted * 1e6}, "memory": running.peak_memory(),
    }  # fmt: skip


def _await_attempted(running: Running, count: int) -> None:
    """Wait until `count` deliveries have been attempted."""
    _await(running, lambda: running.servers.acknowledged(DELIVERY_QUEUE) >= count)


def _await_sent(running: Running, count: int) -> None:
    _await(running, lambda: int(str(running.query(SERVICE.count)[0][0])) >= count)


def _await(running: Running, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CATCH_UP_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Timed out after {CATCH_UP_TIMEOUT:.0f} s; the logs are in {running.logs}")
        time.sleep(POLL)


def _count(running: Running, table: str) -> int:
    [[count]] = running.query(f"SELECT count(*) FROM {table}")
    return int(str(count))


def _waiting(running: Running) -> int:
    """Return the number of notifications that have not been attempted yet."""
    return _count(running, "notifications") - _count(running, "attempts")


def _times(running: Running, expression: str, table: str) -> list[float]:
    """Return the values of a time expression over all rows of a table, sorted, in seconds since the epoch."""
    rows = running.query(f"SELECT extract(epoch FROM {expression})::float FROM {table} ORDER BY 1")
    return [float(str(at)) for [at] in rows]


def _steady_rate(times: Sequence[float]) -> float:
    """Return the rate without the first and last tenths, during which processes start and queues run dry."""
    first, last = len(times) // 10, len(times) * 9 // 10
    return (last - first) / (times[last] - times[first])


def _per_item(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) / count * 1e6 for name in after}


if __name__ == "__main__":
    main()
