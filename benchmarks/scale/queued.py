"""A backlog, single processes that catch up, and several processes of each service."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import tables
from benchmarks.arithmetic import steady_rate
from benchmarks.contenders.ports import free_port
from benchmarks.contenders.service import SERVICE, service_program
from benchmarks.progress import say
from benchmarks.running import Running
from benchmarks.scale.steps import (
    Json,
    await_,
    await_attempted,
    await_sent,
    count_rows,
    count_waiting,
    fill,
    gateway_alone,
    per_item,
    settle,
    times,
)
from benchmarks.servers import Servers
from benchmarks.steps import failures, generate

WAITING = (10_000, 100_000, 1_000_000)
WAITING_RATE = 1400.0  # requests a second while the backlog is measured; about what one sender can send
WAITING_LATENCY = 0.2  # seconds
WAITING_CONCURRENCY = 300  # concurrent provider calls; at that latency, these make at most 1,500 calls a second
WAITING_SECONDS = 20.0
SETTLING = 4.0  # seconds

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


def backlog(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure CPU per notification and memory at a steady rate, with backlogs of several sizes."""
    figures = []
    with gateway_alone(servers, logs, WAITING_LATENCY) as running:
        for count in WAITING:
            fill(running, int(count * fraction))
            say(f"backlog: {count_waiting(running):,}")
            settle(running)
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
        count = fill(running, int(RESULTS_WAITING * fraction))
        await_attempted(running, count)
        running.stop()
        settle(running)
        running.launch(service_program("status_writer"))
        before = running.cpu()
        await_sent(running, count)
        return {
            "results": count, "rate": steady_rate(times(running, "pg_xact_commit_timestamp(xmin)", "deliveries")),
            "cpu": per_item(before, running.cpu(), count),
        }  # fmt: skip


def sender_alone(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure how fast one sender with a slow provider works through a queue while nothing else runs."""
    with gateway_alone(servers, logs, SENDER_LATENCY) as running:
        count = fill(running, int(DELIVERIES_WAITING * fraction))
        running.stop()
        running.launch(service_program("telegram_sender", CONCURRENCY=str(SENDER_CONCURRENCY)))
        before = running.cpu()
        await_attempted(running, count)
        cpu, memory = per_item(before, running.cpu(), count), running.peak_memory()
        running.stop()
        running.launch(service_program("status_writer"))
        await_sent(running, count)
        return {
            "deliveries": count, "latency": SENDER_LATENCY, "concurrency": SENDER_CONCURRENCY,
            "rate": steady_rate(times(running, "finished_at", "attempts")), "cpu": cpu, "memory": memory,
        }  # fmt: skip


def scaling(servers: Servers, logs: Path, fraction: float) -> Json:
    """Measure how the send rate grows with the number of senders, using a slow provider."""
    figures = []
    for senders in SENDERS:
        with gateway_alone(servers, logs, SCALING_LATENCY) as running:
            count = fill(running, int(senders * 500 * SCALING_SECONDS * fraction))
            running.launch(
                service_program("status_writer"),
                *(service_program("telegram_sender", number) for number in range(1, senders + 1)),
            )
            await_sent(running, count)
            rate = steady_rate(times(running, "pg_xact_commit_timestamp(xmin)", "deliveries"))
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
        await_sent(running, len(accepted))
        await_(running, lambda: not count_waiting(running))
        [[sent]] = running.query(SERVICE.count)
        attempts = count_rows(running, "attempts")
    calls = [line for file in ledgers.glob("*.ledger") for line in file.read_text().splitlines()]
    return {
        "gateways": 2, "senders": 4, "status_writers": 2, "rate": TOGETHER_RATE * 2, "accepted": len(accepted),
        "failed": sum(map(failures, seen)), "sent": sent, "attempts": attempts, "provider_calls": len(calls),
    }  # fmt: skip


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
        "waiting": waiting, "waiting_at_the_end": count_waiting(running), "failed": failures(seen),
        "accepted": sum(at < ended for at in seen["answered"]) / WAITING_SECONDS,
        "sent": int(str(sent_in_time)) / WAITING_SECONDS,
        "cpu": cpu | {tables.LOAD_GENERATOR: seen["cpu"] / accepted * 1e6}, "memory": running.peak_memory(),
    }  # fmt: skip
