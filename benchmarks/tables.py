"""Generate the tables in `benchmarks/README.md` from the raw results alone."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Json = dict[str, Any]
SERVICE = "this service"
LOAD_GENERATOR = "load generator"
README = Path(__file__).with_name("README.md")


def write(section: str, text: str) -> None:
    """Replace a generated section of the README."""
    begin, end = f"<!-- {section}: begin -->\n", f"<!-- {section}: end -->"
    before, begun, rest = README.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{README} has no generated section {section!r}")
    README.write_text(before + begin + text + end + after)


def compare(results: Json) -> str:
    """Return the comparison of the contenders: a table for each latency, the CPU by process, and the goals."""
    parts = [_method(results)]
    latencies = sorted({figures["latency"] for figures in results["figures"]})
    parts += [f"### Simulated latency {latency:g} s\n\n" + _contenders(results, latency) for latency in latencies]
    parts += ["### CPU per notification\n\n" + _cpu(results), "### Goals\n\n" + _goals(results)]
    return "\n".join(parts)


def scale(results: Json) -> str:
    """Return the figures of this service alone: the goals, then each section."""
    parts = [
        _measured_on(results) + "\n",
        "### Goals at scale\n\n" + _scale_goals(results),
        "### With a backlog\n\n" + _backlog(results["backlog"]),
        "### With millions stored\n\n" + _stored(results["stored"]),
        "### A single process\n\n" + _status_writer(results["status_writer"]) + "\n" + _sender(results["sender"]),
        "### Several of each process\n\n"
        + _scaling(results["scaling"])
        + "\n"
        + _side_by_side(results["side_by_side"]),
    ]
    return "\n".join(parts)


def events(results: Json) -> str:
    """Format the event delay and the cost of subscribers as Markdown."""
    delay = results["delay"]
    rows = [
        [f"{name}, {each['rate']:g} requests/s", *(f"{each['cores'][case][name]:.1f}" for case in ("without", "idle"))]
        for each in results["costs"]
        for name in each["cores"]["without"]
    ]
    return (
        f"{_measured_on(results)}\n\nAt {delay['rate']:g} requests a second, a subscriber received {delay['received']} "
        f"of {delay['posted']} `sent` events: {delay['p50']:.1f} ms after the commit (p50), {delay['p99']:.1f} ms "
        f"(p99) and {delay['longest']:.1f} ms at most.\n\n"
    ) + table(["% of a core", "no subscribers", f"{results['costs'][0]['subscribers']} idle subscribers"], rows)


def averaged(results: Json, contender: str, latency: float) -> Json:
    """Return the means over all rounds and, for memory, the maximum."""
    rounds = [each for each in results["figures"] if each["contender"] == contender and each["latency"] == latency]
    return {
        "accepted": mean(each["accepted"] for each in rounds),
        "end_to_end": mean(each["end_to_end"] for each in rounds),
        "cpu": _means([each["cpu"] for each in rounds if each["cpu"]]),
        "memory": {name: max(each["memory"][name] for each in rounds) for name in rounds[0]["memory"]},
        "post": _latencies([each["post"] for each in rounds]),
        "to_sent": _latencies([each["to_sent"] for each in rounds]),
    }


def contenders(results: Json) -> list[str]:
    """Return the names of the contenders, this service first."""
    return list(dict.fromkeys(each["contender"] for each in results["figures"]))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table in which every column but the first is right-aligned."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _measured_on(results: Json) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in {**results["machine"], **results["servers"]}.items())
    return f"Measured {results['measured_at'][:10]} in {results['minutes']:.0f} minutes on: {machine}."


def _method(results: Json) -> str:
    rounds = max(figures["round"] for figures in results["figures"])
    return (
        f"{_measured_on(results)} Each figure is the mean of {rounds} round(s) with steps of "
        f"{results['step_seconds']:g} s; memory is the highest of all rounds.\n"
    )


def _contenders(results: Json, latency: float) -> str:
    head = [
        "", "accepted/s", "end to end/s", "CPU µs", "POST at 200/s, p50 / p99 ms", "POST at 500/s",
        "accepted to sent at 200/s, p50 / p99 ms", "at 500/s", "peak MiB", "lost after kill -9",
    ]  # fmt: skip
    rows = []
    for name in contenders(results):
        figures, lost = averaged(results, name, latency), results["lost"].get(name)
        rows.append(
            [
                name,
                f"{figures['accepted']:,.0f}",
                f"{figures['end_to_end']:,.0f}",
                f"{sum(figures['cpu'].values()):,.0f}",
                *(_pair(figures["post"], rate) for rate in ("200", "500")),
                *(_pair(figures["to_sent"], rate) for rate in ("200", "500")),
                listed(figures["memory"]),
                f"{lost['lost']:.0f} of {lost['accepted']:.0f}" if lost else "-",
            ]
        )
    return table(head, rows)


def _cpu(results: Json) -> str:
    latency = min(figures["latency"] for figures in results["figures"])
    rows = []
    for name in contenders(results):
        cpu = averaged(results, name, latency)["cpu"]
        rows.append([name, f"{sum(cpu.values()):.0f}", listed(cpu)])
    return table(["microseconds, latency 0", "total", "by process"], rows)


def _goals(results: Json) -> str:
    latency = min(figures["latency"] for figures in results["figures"])
    by_name = {name: averaged(results, name, latency) for name in contenders(results)}
    if set(by_name) != {SERVICE, "BackgroundTasks", "Celery", "bare drivers"}:
        return "Not all contenders were measured.\n"
    own = by_name[SERVICE]
    slow = averaged(results, SERVICE, max(figures["latency"] for figures in results["figures"]))

    def ratio(figure: str, other: str) -> float:
        return float(own[figure] / by_name[other][figure])

    at_least = [
        ("end to end, compared with BackgroundTasks", ratio("end_to_end", "BackgroundTasks"), 6, 8),
        ("end to end, compared with Celery", ratio("end_to_end", "Celery"), 5, 6),
        ("end to end, compared with bare drivers", ratio("end_to_end", "bare drivers"), 1.3, 1.5),
        ("accepted/s with senders stopped, compared with BackgroundTasks", ratio("accepted", "BackgroundTasks"), 8, 12),
    ]
    at_most = [
        ("accepted to sent at 200/s, p50", slow["to_sent"]["200"]["p50"], 30, 15),
        ("accepted to sent at 200/s, p99", slow["to_sent"]["200"]["p99"], 150, 60),
        ("POST p99 at 500/s", own["post"]["500"]["p99"], 50, 20),
    ]
    return goals([_at_least(*row, "times") for row in at_least] + [_at_most(*row, "ms") for row in at_most])


def _scale_goals(results: Json) -> str:
    backlogs = {each["waiting"]: each for each in results["backlog"]["figures"]}
    small, middle, large = (backlogs[waiting] for waiting in sorted(backlogs))
    cpu = _service_cpu(large) / _service_cpu(small)
    memory = max(middle["memory"].values())
    sizes = f"backlog of {large['waiting']:,} compared with {small['waiting']:,}"
    sender = results["sender"]
    return goals(
        [
            _at_most(f"memory of our largest process, backlog of {middle['waiting']:,}", memory, 150, 100, "MiB"),
            _at_most(f"CPU per notification, {sizes}", cpu, 1.2, 1.05, "times"),
            *(
                _at_most(f"`GET` p99, {name}", took["p99"], 15, 5, "ms")
                for name, took in results["stored"]["reads"].items()
            ),
            _at_least("one status writer, catching up", results["status_writer"]["rate"], 8000, 15000, "/s"),
            _at_least(f"one sender, latency {sender['latency']:g} s", sender["rate"], 2000, 4000, "/s"),
        ]
    )


def _service_cpu(figures: Json) -> float:
    return float(sum(used for name, used in figures["cpu"].items() if name != LOAD_GENERATOR))


def _status_writer(figures: Json) -> str:
    return f"One status writer stores {figures['rate']:,.0f} results a second; CPU µs each: {listed(figures['cpu'])}.\n"


def _sender(figures: Json) -> str:
    return (
        f"One sender with `CONCURRENCY={figures['concurrency']}` makes {figures['rate']:,.0f} deliveries a second at a "
        f"latency of {figures['latency']:g} s; CPU µs each: {listed(figures['cpu'])}; "
        f"peak MiB: {listed(figures['memory'])}.\n"
    )


def listed(by_process: Mapping[str, float]) -> str:
    """Return the names and values as a comma-separated list, without decimals."""
    return ", ".join(f"{name} {value:.0f}" for name, value in by_process.items())


def _backlog(backlog: Json) -> str:
    rows = [
        [
            f"{each['waiting']:,}", f"{each['accepted']:,.0f}", f"{each['sent']:,.0f}",
            f"{each['waiting_at_the_end']:,}", f"{_service_cpu(each):,.0f}",
            listed(each["cpu"]), listed(each["memory"]),
        ]
        for each in backlog["figures"]
    ]  # fmt: skip
    failed = sum(each["failed"] for each in backlog["figures"])
    return (
        f"{backlog['rate']:,.0f} requests a second for {backlog['seconds']:g} s, of which {failed} were not accepted. "
        "The sender can send slightly more than that "
        f"(latency {backlog['latency']:g} s, `CONCURRENCY={backlog['concurrency']}`).\n\n"
    ) + table(["backlog", "accepted/s", "sent/s", "backlog at the end", "CPU µs each", "by process", "peak MiB"], rows)


def _stored(stored: Json) -> str:
    reads = [[name, f"{took['p50']:.1f}", f"{took['p99']:.1f}"] for name, took in stored["reads"].items()]
    inserts = [
        [rows, f"{took['p50']:.1f}", f"{took['p99']:.1f}", f"{took['accepted']:,.0f}"]
        for rows, took in (
            ("none", stored["inserts"]["empty"]), (f"{stored['stored']:,}", stored["inserts"]["stored"])
        )
    ]  # fmt: skip
    drop, rate = stored["drop"], f"{stored['post_rate']:.0f}/s"
    return (
        table([f"`GET` at {stored['read_rate']:.0f}/s, {stored['stored']:,} stored", "p50 ms", "p99 ms"], reads)
        + "\n"
        + table(["stored", f"`POST` at {rate}, p50 ms", "p99 ms", "accepted/s, senders stopped"], inserts)
        + f"\nMaintenance with `RETENTION_DAYS={drop['retention_days']}` dropped {drop['partitions']} tables with "
        f"{drop['before'] - drop['after']:,} of {drop['before']:,} notifications within {drop['seconds']:.1f} s of its "
        f"start. During that time `POST` at {rate} took {drop['post']['p50']:.1f} ms (p50) and "
        f"{drop['post']['p99']:.1f} ms (p99), and {drop['failed']} requests were not accepted.\n"
    )


def _scaling(scaling: Json) -> str:
    [alone, *_] = scaling["figures"]
    rows = [
        [f"{each['senders']}", f"{each['rate']:,.0f}", f"{each['rate'] / alone['rate']:.2f}"]
        for each in scaling["figures"]
    ]
    return table([f"senders, latency {scaling['latency']:g} s", "sent/s", "speedup"], rows)


def _side_by_side(figures: Json) -> str:
    return (
        "{gateways} gateways, {senders} senders and {status_writers} status writers side by side, "
        "{rate:,.0f} requests a second: {accepted:,} accepted, {failed:,} not accepted, {sent:,} sent, "
        "{attempts:,} attempts stored, {provider_calls:,} provider calls.\n"
    ).format(**figures)


# The sections of `make bench-scale` by name.
SECTIONS = {
    "status_writer": _status_writer,
    "sender": _sender,
    "scaling": _scaling,
    "side_by_side": _side_by_side,
    "backlog": _backlog,
    "stored": _stored,
}


def goals(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of figures with their required values and goals."""
    return table(["figure", "measured", "required", "goal", ""], rows)


def _at_least(name: str, measured: float, required: float, goal: float, unit: str) -> list[str]:
    verdict = "goal met" if measured >= goal else "met" if measured >= required else "**not met**"
    return [name, f"{measured:,.2f} {unit}", f"≥ {required:,g} {unit}", f"≥ {goal:,g} {unit}", verdict]


def _at_most(name: str, measured: float, required: float, goal: float, unit: str) -> list[str]:
    verdict = "goal met" if measured <= goal else "met" if measured <= required else "**not met**"
    return [name, f"{measured:,.2f} {unit}", f"≤ {required:,g} {unit}", f"≤ {goal:,g} {unit}", verdict]


def _pair(by_rate: Mapping[str, Mapping[str, float]], rate: str) -> str:
    return f"{by_rate[rate]['p50']:.1f} / {by_rate[rate]['p99']:.1f}" if rate in by_rate else "-"


def _latencies(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    rates = [rate for rate in rounds[0] if all(rate in each for each in rounds)]
    return {rate: _means([each[rate] for each in rounds]) for rate in rates}


def _means(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: mean(each[name] for each in rounds) for name in rounds[0]} if rounds else {}


def read(file: Path) -> Json:
    """Read raw results."""
    results: Json = json.loads(file.read_text())
    return results
