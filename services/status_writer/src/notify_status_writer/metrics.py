"""What the status writer counts."""

import time

from notify_common.channels import Channel
from notify_common.messages import DeliveryStatus, StatusChange, accepted_at
from notify_common.metrics import FINAL_BUCKETS, group_sizes
from prometheus_client import CollectorRegistry, Counter, Histogram


class StatusWriterMetrics:
    """Results, and how long deliveries took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.results = Counter("notify_results_written", "Results applied, repeats included.", registry=registry)
        self.results_together = group_sizes(registry).labels("result messages").observe
        final = Histogram(
            "notify_accepted_to_final_seconds",
            "From the acceptance of a notification to the final status of a delivery, its schedule included.",
            ["channel", "status"], registry=registry, buckets=FINAL_BUCKETS,
        )  # fmt: skip
        self._final = {
            (channel, status): final.labels(channel, status)
            for channel in Channel
            for status in DeliveryStatus
            if status.final
        }

    def changed(self, change: StatusChange) -> None:
        """Note that a delivery has come to its end."""
        if change.status.final:
            took = time.time() - accepted_at(change.notification_id)
            self._final[change.channel, change.status].observe(max(0.0, took))
