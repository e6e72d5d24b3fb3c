"""Figures that are computed from several measurements, as pure functions."""

from collections.abc import Sequence
from statistics import linear_regression, mean

from benchmarks.tables import Json

SOAK_SHARE = 0.7  # fraction of the highest sustained rate at which the service is loaded for an hour
PART = 5  # minutes that are compared: the first with the last


def extra_attempt(results: Json) -> tuple[float, float]:
    """Return the microseconds of CPU of an attempt after the first, and how that compares with a first delivery."""
    without, failing = results["figures"]
    base, more = sum(without["cpu"].values()), sum(failing["cpu"].values())
    extra = failing["attempts"] / failing["deliveries"] - without["attempts"] / without["deliveries"]
    each = (more - base) / extra
    return each, each / base


def compared(parts: Sequence[Json]) -> Json:
    """Compare the last minutes with the first: what was sent and the CPU; and return the growth of memory per hour."""
    length = min(PART, len(parts) // 2)
    first, last = parts[:length], parts[-length:]
    hours = (len(parts) - length) / 60
    return {
        "sent": mean(each["sent"] for each in last) / mean(each["sent"] for each in first),
        "cpu": mean(each["cpu"] for each in last) / mean(each["cpu"] for each in first),
        "memory_per_hour": {
            name: (mean(each["memory"][name] for each in last) - mean(each["memory"][name] for each in first)) / hours
            for name in parts[0]["memory"]
        },
    }


def late_growth(parts: Sequence[Json]) -> dict[str, float]:
    """Return the slope of each process's memory in the second half of the minutes, in MiB per hour.

    By then, buffers and pools have grown to the size that the load needs.
    """
    late = parts[-max(2, len(parts) // 2) :]
    return {
        name: 60 * linear_regression(range(len(late)), [each["memory"][name] for each in late]).slope
        for name in parts[0]["memory"]
    }
