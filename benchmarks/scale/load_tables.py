"""The tables of the measurements with many partitions, large messages, failures, outages, and over an hour.

Each has its figures, a sentence on what they mean, and the goals for the service.
"""

from typing import Any

from benchmarks.scale.load_figures import SOAK_SHARE, extra_attempt, late_growth
from benchmarks.tables import LOAD_GENERATOR, Json, at_least, at_most, goals, listed, table


def own_cpu(cpu: dict[str, float]) -> float:
    """Return the CPU without the load generator's."""
    return float(sum(used for name, used in cpu.items() if name != LOAD_GENERATOR))


def partitions_section(results: Json) -> str:
    """Format the lists and writes with few and with many partitions."""
    few, many = results["figures"][0], results["figures"][-1]
    ratio = own_cpu(many["writes"]["cpu"]) / own_cpu(few["writes"]["cpu"])
    slowest = max(each["list"]["p99"] for each in many["lists"].values())
    rows = [
        [name, *(_pair(one["lists"][name][part]) for one in results["figures"] for part in ("list", "post"))]
        for name in few["lists"]
    ]
    rows.append(["writes alone", *(cell for one in results["figures"] for cell in ("-", _pair(one["writes"]["post"])))])
    head = [f"p50 / p99 ms at {results['list_rate']:g} lists/s and {results['write_rate']:g} `POST`s/s"]
    for one in results["figures"]:
        head += [f"`GET`, {one['partitions']} partitions", "`POST` meanwhile"]
    return (
        table(head, rows)
        + f"\n{results['stored']:,} notifications of {results['tenants']:,} tenants are stored, and each "
        "request carries "
        f"the key of a random tenant. With {many['partitions']} instead of {few['partitions']} partitions (weeks), a "
        f"notification costs {ratio:.2f} times the CPU. {_unaccepted(results)}\n\n"
        + goals(
            [
                at_most(
                    f"CPU with {many['partitions']} partitions, relative to {few['partitions']}", ratio, 1.1, 1.05, ""
                ),
                at_most(f"slowest `GET` p99 with {many['partitions']} partitions", slowest, 12, 5, "ms"),
            ]
        )
    )


def _unaccepted(results: Json) -> str:
    failed = sum(
        one["writes"]["failed"] + sum(each["failed"] for each in one["lists"].values()) for one in results["figures"]
    )
    return f"{failed} requests failed."


def messages_section(results: Json) -> str:
    """Format the figures for short and long messages."""
    rows = [
        [
            each["name"], f"{each['bytes']:,}", _pair(each["post"]), _pair(each["to_sent"]),
            f"{own_cpu(each['cpu']):,.0f}",
            f"{each['stored_kib']:.1f}", f"{each['accepted']:,.0f}", listed(each["memory"]),
        ]
        for each in results["figures"]
    ]  # fmt: skip
    short, long = results["figures"][0], results["figures"][-1]
    head = [
        "message", "bytes of the request", f"`POST` at {results['rate']:g}/s, p50 / p99 ms",
        "accepted to sent, p50 / p99 ms", "CPU µs each", "KiB stored each", "accepted/s, full load", "peak MiB",
    ]  # fmt: skip
    ratio = own_cpu(long["cpu"]) / own_cpu(short["cpu"])
    failed = sum(each["failed"] for each in results["figures"])
    return table(head, rows) + (
        f"\nThe longest message that is allowed ({long['bytes'] / 1024:.0f} KiB) costs {ratio:.1f} times the "
        "CPU of a short "
        f"one; processes must stay bounded, because many such bodies wait in memory at full load. {failed} requests "
        "failed.\n"
    )


def retries_section(results: Json) -> str:
    """Format what failures cost."""
    rows = [
        [
            f"{each['probability']:.0%}", f"{each['deliveries']:,}", f"{each['attempts'] / each['deliveries']:.3f}",
            f"{each['failed']:,}", f"{own_cpu(each['cpu']):,.0f}", _pair(each["first_attempt"]), _pair(each["final"]),
        ]
        for each in results["figures"]
    ]  # fmt: skip
    head = [
        "temporary failures", "deliveries", "attempts each", "failed in the end", "CPU µs per delivery",
        "accepted to the end of the last first attempt, p50 / p99 ms", "to the end of all attempts",
    ]  # fmt: skip
    microseconds, ratio = extra_attempt(results)
    return (
        table(head, rows)
        + f"\n{results['rate']:g} notifications a second go to {results['channels']} channels each, with up to "
        f"{results['max_attempts']} attempts. An attempt after the first costs {microseconds:,.0f} µs, which is "
        f"{ratio:.2f} "
        "times a whole first delivery, acceptance included. First attempts should not become slower when others are "
        "retried.\n\n" + goals([at_most("CPU of an extra attempt, relative to the first", ratio, 0.8, 0.6, "")])
    )


def outage_section(results: Json) -> str:
    """Format a sender's outage and the drain that follows."""
    away, draining, before = results["away"], results["draining"], results["before"]
    rows = [
        [
            title, f"{each['accepted']:,}", f"{each['failed']:,}", _pair(each["post"]), f"{each['waiting']:,}",
            f"{each['memory']['rabbitmq']:,.0f}", f"{each['broker_disk'] - before['broker_disk']:,.0f}",
            listed({name: used for name, used in each["memory"].items() if name != "rabbitmq"}),
        ]
        for title, each in (
            (f"no sender for {results['seconds']:.0f} s", away), (f"draining {results['waiting']:,}", draining),
        )
    ]  # fmt: skip
    head = [
        f"at {results['rate']:,.0f}/s", "accepted", "not accepted", "`POST` p50 / p99 ms", "most waiting",
        "RabbitMQ MiB", "its disk, MiB", "largest MiB",
    ]  # fmt: skip
    drained = "" if results["left"] <= results["rate"] * 2 else f" It was not drained: {results['left']:,} were left."
    return (
        table(head, rows) + f"\nWith {results['senders']} senders (latency {results['latency']:g} s, "
        f"`CONCURRENCY={results['concurrency']}`), "
        f"{results['waiting']:,} waiting notifications and all that arrived meanwhile were sent within "
        f"{results['drain_seconds']:,.0f} s, {results['sent']:,.0f} a second.{drained} That is how long users "
        "wait after "
        "such an outage.\n\n"
        + goals([at_least("drain of a backlog while 1,000/s arrive", results["sent"], 3500, 5000, "/s")])
    )


def soak_section(results: Json) -> str:
    """Format the hour's load."""
    compared, minutes = results["compared"], results["minutes"]
    chosen = sorted({round(part * (len(minutes) - 1)) for part in (0, 0.2, 0.4, 0.6, 0.8, 1)})
    rows = [
        [
            f"{number + 1}", f"{each['accepted']:,.0f}", f"{each['sent']:,.0f}", _pair(each["post"]),
            f"{each['cpu']:,.0f}", listed(each["memory"]), f"{each['dead_rows']:,}", f"{each['failed']:,}",
        ]
        for number, each in ((number, minutes[number]) for number in chosen)
    ]  # fmt: skip
    head = ["minute", "accepted/s", "sent/s", "`POST` p50 / p99 ms", "CPU µs each", "MiB", "dead rows", "not accepted"]
    growth, late = compared["memory_per_hour"], late_growth(minutes)
    drops = "; ".join(_drop(each) for each in results["drops"])
    return (
        table(head, rows) + f"\n{len(minutes)} minutes at {results['rate']:,.0f}/s, which is 70 % of the "
        f"{results['rate'] / SOAK_SHARE:,.0f}/s that a search just before found (latency 0.2 s, the default "
        f"`CONCURRENCY=500`). {drops}. A transaction stayed open from a quarter to three quarters of the time. "
        f"Memory grew, from the first five minutes to the last, in MiB/h: {_signed(growth)}; in the second half, after "
        f"buffers and pools had grown to what the load needs: {_signed(late)}.\n\n"
        + goals(
            [
                at_least("sent in the last five minutes, relative to the first", compared["sent"] * 100, 95, 99, "%"),
                at_most("largest growth of a process's memory", max(growth.values()), 4, 1, "MiB/h"),
                at_most("the same in the second half", max(late.values()), 4, 1, "MiB/h"),
            ]
        )
    )


def _drop(drop: dict[str, Any]) -> str:
    gone = "were not dropped" if drop["gone_by_minute"] is None else f"were gone by minute {drop['gone_by_minute']}"
    return f"{drop['partitions']} tables older than {drop['days']} days, from minute {drop['minute']} on, {gone}"


def _signed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.1f}" for name, value in values.items())


def _pair(quantiles: dict[str, float]) -> str:
    return f"{quantiles['p50']:.1f} / {quantiles['p99']:.1f}"


# The titles and tables of these sections, in the order of the README.
LOAD_SECTIONS = {
    "partitions": ("Few and many partitions", partitions_section),
    "messages": ("Large messages", messages_section),
    "retries": ("Temporary failures", retries_section),
    "outage": ("A sender unavailable for ten minutes", outage_section),
    "soak": ("An hour at 70 % load", soak_section),
}
