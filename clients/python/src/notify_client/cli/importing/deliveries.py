"""Follow notifications until they are final, and summarize their deliveries."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles

from rich.table import Table

from notify_client import AsyncClient, WaitTimedOut
from notify_client.cli.importing.parallel import in_parallel
from notify_client.models import Notification

Kind = tuple[str, str]  # channel and status


@dataclass
class Deliveries:
    """The deliveries of many notifications, by channel and status."""

    final: int = 0
    """Notifications."""
    open: int = 0
    attempts: defaultdict[Kind, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """Deliveries by their number of attempts."""
    latencies: defaultdict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, notification: Notification) -> None:
        """Add a final notification."""
        self.final += 1
        for delivery in notification.deliveries:
            kind = (delivery.channel, delivery.status)
            attempts = delivery.attempts or []
            self.attempts[kind][len(attempts) + (delivery.earlier_attempts or 0)] += 1
            if attempts:
                self.latencies[kind].append((attempts[-1].finished_at - notification.created_at).total_seconds())

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of deliveries by channel and status."""
        result: dict[str, dict[str, int]] = {}
        for (channel, status), counts in sorted(self.attempts.items()):
            result.setdefault(channel, {})[status] = counts.total()
        return result

    def table(self) -> Table:
        """Return the table that `notify import --wait` ends with."""
        table = Table("channel", "status", title="Deliveries")
        for heading in ("deliveries", "attempts", "1", "2", "3+", "p50 s", "p95 s", "p99 s"):
            table.add_column(heading, justify="right")
        for kind, counts in sorted(self.attempts.items()):
            table.add_row(
                *kind, str(counts.total()), str(sum(number * count for number, count in counts.items())),
                str(counts[1]), str(counts[2]), str(counts.total() - counts[0] - counts[1] - counts[2]),
                *_percentiles(self.latencies[kind]),
            )  # fmt: skip
        table.caption = "1, 2, 3+: deliveries by their number of attempts; seconds: from acceptance to the last attempt"
        return table


async def follow(
    client: AsyncClient, ids: Iterator[str], concurrency: int, timeout: float, changed: Callable[[int], None]
) -> Deliveries:
    """Wait until the notifications are final, or the time is over. Only `concurrency` of them are in memory."""
    deliveries = Deliveries()
    deadline = time.monotonic() + timeout

    async def wait_for_some() -> None:
        for notification_id in ids:  # all tasks share the iterator
            try:
                left = max(0.0, deadline - time.monotonic())
                deliveries.add(await client.notifications.wait(notification_id, left))
            except WaitTimedOut:
                deliveries.open += 1
            changed(deliveries.final)

    await in_parallel(concurrency, wait_for_some)
    return deliveries


def _percentiles(seconds: list[float]) -> tuple[str, str, str]:
    if not seconds:
        return "-", "-", "-"
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return f"{cuts[49]:.2f}", f"{cuts[94]:.2f}", f"{cuts[98]:.2f}"
