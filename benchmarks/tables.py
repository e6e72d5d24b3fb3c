"""The tables of `benchmarks/README.md`, made from the raw results and from nothing else."""

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
    """Put `text` into its section of the README."""
    begin, end = f"<!-- {section}: begin -->\n", f"<!-- {section}: end -->"
    before, begun, rest = README.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{README} has no section {section}")
    README.write_text(before + begin + text + end + after)


def compare(results: Json) -> str:
    """Contenders side by side: per latency a table, the goals, CPU, memory and losses."""
    parts = [_machine(results)]
    latencies = sorted({figures["latency"] for figures in results["figures"]})
    parts += [f"### Simulated latency {latency:g} s\n\n" + _contenders(results, latency) for latency in latencies]
    parts += ["### CPU per notification\n\n" + _cpu(results), "### Goals\n\n" + _goals(results)]
    return "\n".join(parts)


def scale(results: Json) -> str:
    """The service alone: the goals, what waits, what is stored, and several of each process."""
    parts = [
        f"Measured {results['measured_at'][:10]}, in {results['minutes']:.0f} minutes, on: {_told(results)}.\n",
        "### Goals at scale\n\n" + _scale_goals(results),
        "### With many waiting\n\n" + _backlog(results["backlog"]),
        "### With millions stored\n\n" + _stored(results["stored"]),
        "### One process alone\n\n" + _status_writer(results["status_writer"]) + "\n" + _sender(results["sender"]),
        "### Several of each\n\n" + _scaling(results["scaling"]) + "\n" + _side_by_side(results["side_by_side"]),
    ]
    return "\n".join(parts)


def events(results: Json) -> str:
    """How soon events are told, and what listening costs."""
    told = results["told"]
    rows = [
        [f"{name}, {each['rate']:g} requests/s", *(f"{each['cores'][who][name]:.1f}" for who in ("nobody", "many"))]
        for each in results["costs"]
        for name in each["cores"]["nobody"]
    ]
    return (
        f"Measured {results['measured_at'][:10]}, in {results['minutes']:.0f} minutes, on: {_told(results)}.\n\n"
        f"At {told['rate']:g} requests a second one listener is told of {told['told']} of {told['posted']} deliveries "
        f"{told['p50']:.1f} ms after the commit (p50), {told['p99']:.1f} ms (p99), {told['longest']:.1f} at most.\n\n"
    ) + table(["% of a core", "nobody listens", f"{results['costs'][0]['listeners']} listen, to nothing"], rows)


def averaged(results: Json, contender: str, latency: float) -> Json:
    """The means of all rounds."""
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
    """Their names, this service first."""
    return list(dict.fromkeys(each["contender"] for each in results["figures"]))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; every column but the first is right-aligned."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _told(results: Json) -> str:
    return ", ".join(f"{name} {value}" for name, value in {**results["machine"], **results["servers"]}.items())


def _machine(results: Json) -> str:
    return (
        f"Measured {results['measured_at'][:10]}, in {results['minutes']:.0f} minutes, on: {_told(results)}. "
        f"{max(figures['round'] for figures in results['figures'])} round(s), steps of {results['step_seconds']:g} s; "
        "each figure is the mean of the rounds, memory the highest.\n"
    )


def _contenders(results: Json, latency: float) -> str:
    head = [
        "", "accepted/s", "end to end/s", "CPU µs", "POST at 200/s, p50 / p99 ms", "POST at 500/s",
        "accepted to sent at 200/s, p50 / p99 ms", "at 500/s", "peak MiB", "lost by kill -9",
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
    return table(["microseconds, latency 0", "in all", "by process"], rows)


def _goals(results: Json) -> str:
    latency = min(figures["latency"] for figures in results["figures"])
    by_name = {name: averaged(results, name, latency) for name in contenders(results)}
    if set(by_name) != {SERVICE, "BackgroundTasks", "Celery", "bare drivers"}:
        return "Not all contenders ran.\n"
    own = by_name[SERVICE]
    slow = averaged(results, SERVICE, max(figures["latency"] for figures in results["figures"]))

    def ratio(figure: str, other: str) -> float:
        return float(own[figure] / by_name[other][figure])

    rows = [
        ("end to end against BackgroundTasks", ratio("end_to_end", "BackgroundTasks"), 6, 8, "times"),
        ("end to end against Celery", ratio("end_to_end", "Celery"), 5, 6, "times"),
        ("end to end against bare drivers", ratio("end_to_end", "bare drivers"), 1.3, 1.5, "times"),
        ("accepted/s, senders stopped, against BackgroundTasks", ratio("accepted", "BackgroundTasks"), 8, 12, "times"),
    ]
    told = [(what, got, least, goal, unit, got >= least, got >= goal) for what, got, least, goal, unit in rows]
    for what, got, least, goal in (
        ("accepted to sent at 200/s, p50", slow["to_sent"]["200"]["p50"], 30, 15),
        ("accepted to sent at 200/s, p99", slow["to_sent"]["200"]["p99"], 150, 60),
        ("POST p99 at 500/s", own["post"]["500"]["p99"], 50, 20),
    ):
        told.append((what, got, least, goal, "ms", got <= least, got <= goal))
    return goals(told)


def _scale_goals(results: Json) -> str:
    standing = {each["waiting"]: each for each in results["backlog"]["figures"]}
    least, middle, most = (standing[waiting] for waiting in sorted(standing))
    cpu = _service_cpu(most) / _service_cpu(least)
    memory = max(middle["memory"].values())
    reads = results["stored"]["reads"]
    rows = [
        (f"memory of the largest of our processes, {middle['waiting']:,} waiting", memory, 150, 100, "MiB"),
        (f"CPU per notification, {most['waiting']:,} waiting against {least['waiting']:,}", cpu, 1.2, 1.05, "times"),
        *((f"`GET` p99, {name}", took["p99"], 15, 5, "ms") for name, took in reads.items()),
    ]
    told = [(what, got, at_least, goal, unit, got <= at_least, got <= goal) for what, got, at_least, goal, unit in rows]
    for what, got, at_least, goal in (
        ("status writer alone, catching up", results["status_writer"]["rate"], 8000, 15000),
        (f"one sender, latency {results['sender']['latency']:g} s", results["sender"]["rate"], 2000, 4000),
    ):
        told.append((what, got, at_least, goal, "/s", got >= at_least, got >= goal))
    return goals(told)


def _service_cpu(standing: Json) -> float:
    return float(sum(used for name, used in standing["cpu"].items() if name != LOAD_GENERATOR))


def _status_writer(alone: Json) -> str:
    return f"One status writer stores {alone['rate']:,.0f} results a second; CPU µs each: {listed(alone['cpu'])}.\n"


def _sender(alone: Json) -> str:
    return (
        f"One sender with `CONCURRENCY={alone['concurrency']}` delivers {alone['rate']:,.0f} a second at a latency of "
        f"{alone['latency']:g} s; CPU µs each: {listed(alone['cpu'])}; peak MiB: {listed(alone['memory'])}.\n"
    )


def listed(by_process: Mapping[str, float]) -> str:
    """Names and values, without decimals."""
    return ", ".join(f"{name} {value:.0f}" for name, value in by_process.items())


def _backlog(backlog: Json) -> str:
    rows = [
        [
            f"{each['waiting']:,}", f"{each['accepted']:,.0f}", f"{each['sent']:,.0f}",
            f"{each['waiting_at_the_end']:,}", f"{_service_cpu(each):,.0f}",
            *(listed(each[what]) for what in ("cpu", "memory")),
        ]
        for each in backlog["figures"]
    ]  # fmt: skip
    failed = sum(each["failed"] for each in backlog["figures"])
    return (
        f"{backlog['rate']:,.0f} requests a second for {backlog['seconds']:g} s, {failed} of them not accepted, "
        "and a sender that can send a few more "
        f"(latency {backlog['latency']:g} s, `CONCURRENCY={backlog['concurrency']}`).\n\n"
    ) + table(["waiting", "accepted/s", "sent/s", "waiting at the end", "CPU µs each", "by process", "peak MiB"], rows)


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
        + table(["stored", f"`POST` at {rate}, p50 ms", "p99 ms", "accepted/s, nothing sent"], inserts)
        + f"\nA gateway with `RETENTION_DAYS={drop['retention_days']}` starts, and {drop['seconds']:.1f} s later it "
        f"has dropped {drop['partitions']} tables with {drop['before'] - drop['after']:,} of {drop['before']:,} "
        "notifications. "
        f"`POST` at {rate} meanwhile: p50 {drop['post']['p50']:.1f} ms, p99 {drop['post']['p99']:.1f} ms, "
        f"{drop['failed']} not accepted.\n"
    )


def _scaling(scaling: Json) -> str:
    [alone, *_] = scaling["figures"]
    rows = [
        [f"{each['senders']}", f"{each['rate']:,.0f}", f"{each['rate'] / alone['rate']:.2f}"]
        for each in scaling["figures"]
    ]
    return table([f"senders, latency {scaling['latency']:g} s", "sent/s", "times one"], rows)


def _side_by_side(together: Json) -> str:
    return (
        "{gateways} gateways, {senders} senders and {status_writers} status writers side by side, "
        "{rate:,.0f} requests a second: {accepted:,} accepted, {failed:,} not, {sent:,} sent, "
        "{attempts:,} attempts stored, {provider_calls:,} provider calls.\n"
    ).format(**together)


# Of `make bench-scale`, by name.
SECTIONS = {
    "status_writer": _status_writer,
    "sender": _sender,
    "scaling": _scaling,
    "side_by_side": _side_by_side,
    "backlog": _backlog,
    "stored": _stored,
}


def goals(told: Iterable[tuple[str, float, float, float, str, bool, bool]]) -> str:
    """What was asked for and what was measured: figure, measured, at least, goal, unit, whether each is reached."""
    return table(
        ["figure", "measured", "at least", "goal", ""],
        [
            [what, f"{got:,.2f} {unit}", f"{least:,g} {unit}", f"{goal:,g} {unit}", _verdict(reached, beyond)]
            for what, got, least, goal, unit, reached, beyond in told
        ],
    )


def _verdict(reached: bool, beyond: bool) -> str:
    return "goal reached" if beyond else "reached" if reached else "**not reached**"


def _pair(by_rate: Mapping[str, Mapping[str, float]], rate: str) -> str:
    return f"{by_rate[rate]['p50']:.1f} / {by_rate[rate]['p99']:.1f}" if rate in by_rate else "-"


def _latencies(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    rates = [rate for rate in rounds[0] if all(rate in each for each in rounds)]
    return {rate: _means([each[rate] for each in rounds]) for rate in rates}


def _means(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: mean(each[name] for each in rounds) for name in rounds[0]} if rounds else {}


def read(file: Path) -> Json:
    """Raw results."""
    results: Json = json.loads(file.read_text())
    return results
