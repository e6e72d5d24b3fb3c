"""The tables of `make bench-scale`."""

from benchmarks.scale.load_tables import LOAD_SECTIONS
from benchmarks.tables import LOAD_GENERATOR, Json, at_least, at_most, goals, listed, measured_on, table


def scale(results: Json) -> str:
    """Return the figures of this service alone: the goals, then each section."""
    parts = [
        measured_on(results) + "\n",
        "### Goals at scale\n\n" + _scale_goals(results),
        "### With a backlog\n\n" + _backlog(results["backlog"]),
        "### With millions stored\n\n" + _stored(results["stored"]),
        "### A single process\n\n" + _status_writer(results["status_writer"]) + "\n" + _sender(results["sender"]),
        "### Several of each process\n\n"
        + _scaling(results["scaling"])
        + "\n"
        + _side_by_side(results["side_by_side"]),
    ]
    for name, (title, section) in LOAD_SECTIONS.items():
        if name in results:
            measured = measured_on({**results, **results[name]["circumstances"]})
            parts.append(f"### {title}\n\n{measured}\n\n{section(results[name])}")
    return "\n".join(parts)


def _scale_goals(results: Json) -> str:
    backlogs = {each["waiting"]: each for each in results["backlog"]["figures"]}
    small, middle, large = (backlogs[waiting] for waiting in sorted(backlogs))
    cpu = _service_cpu(large) / _service_cpu(small)
    memory = max(middle["memory"].values())
    sizes = f"backlog of {large['waiting']:,} compared with {small['waiting']:,}"
    sender = results["sender"]
    return goals(
        [
            at_most(f"memory of our largest process, backlog of {middle['waiting']:,}", memory, 150, 100, "MiB"),
            at_most(f"CPU per notification, {sizes}", cpu, 1.2, 1.05, "times"),
            *(
                at_most(f"`GET` p99, {name}", took["p99"], 15, 5, "ms")
                for name, took in results["stored"]["reads"].items()
            ),
            at_least("one status writer, catching up", results["status_writer"]["rate"], 8000, 15000, "/s"),
            at_least(f"one sender, latency {sender['latency']:g} s", sender["rate"], 2000, 4000, "/s"),
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
    **{name: section for name, (_, section) in LOAD_SECTIONS.items()},
}
