"""The metrics of the status writer."""

import time

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import accepted_at
from notify_common.contracts.messages import DeliveryStatus, StatusChange
from notify_common.runtime.metrics import batch_sizes
from prometheus_client import CollectorRegistry, Counter, Histogram

from notify_status_writer.delivery_state import Refusal

FINAL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400)  # seconds


class StatusWriterMetrics:
    """Counts results and observes how long deliveries took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.results = Counter("notify_results_written", "Results applied, including duplicates.", registry=registry)
        refused = Counter(
            "notify_results_refused", "Results that were not applied, by the queue that they came from.",
            ["queue", "reason"], registry=registry,
        )  # fmt: skip
        self.refused = {
            (queue, reason): refused.labels(queue, reason)
            for queue in (binding.queue.name for binding in topology.all_results())
            for reason in Refusal
        }
        self.observe_results_batch = batch_sizes(registry).labels("result messages").observe
        final = Histogram(
            "notify_accepted_to_final_seconds",
            "Time from a notification's acceptance to a delivery's final status, including any scheduled delay.",
            ["channel", "status"], registry=registry, buckets=FINAL_BUCKETS,
        )  # fmt: skip
        self._final = {
            (channel, status): final.labels(channel, status)
            for channel in Channel
            for status in DeliveryStatus
            if status.final
        }

    def changed(self, change: StatusChange) -> None:
        """Observe a delivery's duration, if its new status is final."""
        if change.status.final:
            took = time.time() - accepted_at(change.notification_id)
            self._final[change.channel, change.status].observe(max(0.0, took))
