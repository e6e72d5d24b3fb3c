"""The goals of `make bench`."""

from collections.abc import Sequence

from benchmarks.arithmetic import spread
from benchmarks.compare_figures import (
    SERVICE,
    Figure,
    accepted,
    at,
    by_round,
    contenders,
    cpu_at,
    end_to_end,
    latencies,
    ratio,
    tail,
)
from benchmarks.tables import Json, at_least, at_most, goals

# How often as much as each alternative this service should send: at least, and as the goal, by latency.
RATIO_GOALS: Sequence[tuple[str, float, float, float]] = [
    ("BackgroundTasks", 0.0, 7, 10),
    ("BackgroundTasks", 0.2, 6, 9),
    ("Celery", 0.0, 8, 12),
    ("bare drivers, batched", 0.0, 3, 4),
    ("FastStream", 0.0, 2.5, 3.5),
    ("Taskiq", 0.0, 2.5, 3.5),
    ("Node.js", 0.0, 1.5, 2),
]


def goals_table(results: Json, latency: float) -> str:
    """Return the goals for this service, with what was measured."""
    if SERVICE not in contenders(results):
        return "This service was not measured.\n"
    lowest = latencies(results)[0]
    rows: list[Sequence[str]] = []
    at_least_of: list[tuple[str, float, Figure, float, float, str]] = [
        ("end to end, latency 0 s", lowest, end_to_end, 4500, 6500, "/s"),
        (f"end to end, latency {latency:g} s", latency, end_to_end, 3500, 5000, "/s"),
        ("accepted/s, senders stopped", lowest, accepted, 7500, 9000, "/s"),
    ]
    at_most_of: list[tuple[str, Figure, float, float, str]] = [
        ("CPU at the maximum", cpu_at(None), 420, 290, "µs"),
        ("CPU at 200/s", cpu_at("200"), 2500, 1600, "µs"),
        ("POST p50 at 200/s", at("200", "post", "p50"), 4, 3, "ms"),
        ("accepted to sent p50 at 200/s", at("200", "to_sent", "p50"), 6, 4, "ms"),
    ]
    for title, at_latency, figure, least, goal, unit in at_least_of:
        if own := by_round(results, SERVICE, at_latency, figure):
            rows.append(at_least(title, spread(list(own.values()))[0], least, goal, unit))
    for name, at_latency, times, goal_times in RATIO_GOALS:
        if found := ratio(results, name, at_latency, end_to_end):
            title = f"end to end compared with {name}, latency {at_latency:g} s"
            rows.append(at_least(title, spread(list(found.values()))[0], times, goal_times, "times"))
    for title, figure, most, goal, unit in at_most_of:
        if own := by_round(results, SERVICE, latency, figure):
            rows.append(at_most(title, spread(list(own.values()))[0], most, goal, unit))
    tails = [
        ("POST p99 at 70 %", "post", 0.99, 30, 15),
        ("POST p99.9 at 70 %", "post", 0.999, 90, 50),
        ("accepted to sent p99 at 70 %", "to_sent", 0.99, 60, 35),
    ]
    for title, part, share, most, goal in tails:
        if (value := tail(results, SERVICE, latency, part, share)) is not None:
            rows.append(at_most(title, value, most, goal, "ms"))
    return goals(rows)
