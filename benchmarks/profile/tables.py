"""The tables of `make bench-profile`."""

from collections.abc import Sequence

from benchmarks.profile.stacks import OTHER
from benchmarks.tables import Json, measured_on, table

ROWS = 16  # areas
SMALL = 0.5  # µs; a process that uses less is not shown


def profile(results: Json) -> str:
    """Return the figures of all loads as Markdown."""
    loads = results["loads"]
    parts = [measured_on(results) + "\n", "### CPU by process\n\n" + _cpu(loads)]
    for load in loads:
        parts += [f"### {each} {load['name']}\n\n{text}" for each, text in _load(load).items()]
    return "\n".join(parts)


def _load(load: Json) -> dict[str, str]:
    return {
        "Python code at": areas(load),
        "Statements at": _statements(load),
        "Batches and messages at": _batches(load),
    }


def file_name(load: str, process: str) -> str:
    """Return the name of the flame graph of a process at a load."""
    return f"{load.replace(' ', '-').replace('/', '-')}.{process}.svg"


def _cpu(loads: Sequence[Json]) -> str:
    names = sorted(loads[0]["cpu"]["processes"], key=lambda name: -loads[0]["cpu"]["processes"][name])
    shown = [name for name in names if any(load["cpu"]["processes"].get(name, 0.0) >= SMALL for load in loads)]
    rows = [[name, *(f"{load['cpu']['processes'].get(name, 0.0):,.0f}" for load in loads)] for name in shown]
    rows.append(["**all**", *(f"{sum(load['cpu']['processes'].values()):,.0f}" for load in loads)])
    rows.append(["load generator", *(f"{load['cpu']['load_generator']:,.0f}" for load in loads)])
    rows.append(["accepted/s", *(f"{load['cpu']['accepted']:,.0f}" for load in loads)])
    rows.append(["requests that failed", *(f"{load['cpu']['failed']:,}" for load in loads)])
    rows.append(["% of a core used by other programs", *(f"{load['cpu']['other_work']:.0f}" for load in loads)])
    return (
        "The µs of CPU per notification, until all of them are sent. Processes use less when there is more to do, "
        "because their batches are larger.\n\n"
    ) + table(["µs per notification", *(load["name"] for load in loads)], rows)


def areas(load: Json) -> str:
    """Return the share of each process's time by area of the code."""
    by_process: dict[str, dict[str, float]] = load["areas"]
    totals: dict[str, float] = {}
    for process, found in by_process.items():
        for area, share in found.items():
            totals[area] = totals.get(area, 0.0) + share * load["cpu"]["processes"][process]
    totals.pop(OTHER, None)
    shown = sorted(totals, key=lambda area: -totals[area])[:ROWS]
    rows = [[area, *(_percent(found.get(area, 0.0)) for found in by_process.values())] for area in shown]
    rest = [1 - sum(found.get(area, 0.0) for area in shown) for found in by_process.values()]
    rows.append([OTHER, *(_percent(share) for share in rest)])
    graphs = ", ".join(f"[{name}](results/profile/{file_name(load['name'], name)})" for name in by_process)
    busy = ", ".join(f"{name} {count:,}" for name, count in load["samples"].items())
    return (
        "The % of each process's time by area of the code, ordered by the CPU of all three. A sample counts for the "
        "innermost function that belongs to an area, so that an area does not include the libraries that it calls. "
        "The event loop's own share includes the time in which a process that was woken up waits for a core.\n\n"
        + table(["% of the process's time", *by_process], rows)
        + f"\nSamples in which the process was not idle, of {load['most_samples']:,}: {busy}. Flame graphs: {graphs}.\n"
    )


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}"
    return "" if text in {"0.0", "-0.0"} else text


def _statements(load: Json) -> str:
    rows = [
        [
            _code(each["statement"]),
            f"{each['calls']:.4f}",
            f"{each['milliseconds']:.3f}",
            f"{each['rows']:.1f}",
            f"{100 * each['share']:.1f}",
        ]
        for each in load["statements"]
    ]
    spent = sum(each["calls"] * each["milliseconds"] for each in load["statements"]) * 1000
    return (
        f"The statements of the gateway and the status writer took {spent:,.0f} µs per notification together "
        "(`pg_stat_statements`, planning included). Rows are those that the whole statement returns or changes. These "
        "times do not include the end of a transaction, which waits for the disk.\n\n"
        + table(["statement", "calls per notification", "mean ms", "rows per call", "% of the time"], rows)
        + f"\nThe write-ahead log was flushed to the disk {load['wal_syncs']:.3f} times per notification, "
        f"which took {load['wal_sync_milliseconds']:.2f} ms each time.\n"
    )


def _code(statement: str) -> str:
    return f"`{statement}`".replace("|", "\\|")


def _batches(load: Json) -> str:
    rows = [
        [f"{each['process']}: {each['step']}", f"{each['items']:.1f}", f"{each['batches']:.4f}"]
        for each in load["batches"]
    ]
    messages = ", ".join(f"`{name}` {count:.3f}" for name, count in load["messages"].items())
    return (
        "The mean number of items per batch (`notify_group_size`). The larger the batches are, the fewer transactions, "
        "messages and confirms a notification needs.\n\n"
        + table(["step", "items per batch", "batches per notification"], rows)
        + f"\nMessages per notification, by exchange: {messages}.\n"
    )
