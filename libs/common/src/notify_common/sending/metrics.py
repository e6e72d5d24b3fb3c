"""The metrics of a sender."""

from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, ErrorClass, Outcome
from notify_common.runtime.metrics import batch_sizes

PROVIDER_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds


class SenderMetrics:
    """The metrics of one sender process."""

    def __init__(self, registry: CollectorRegistry, channel: Channel) -> None:
        self._channel = channel
        self._counter = attempts = Counter(
            "notify_attempts", "Attempts that have ended.", ["channel", "outcome", "error_class"], registry=registry
        )
        self._attempts = {
            (outcome, error_class): attempts.labels(channel, outcome, error_class or "")
            for outcome, error_class in _COMBINATIONS
        }
        self._latency = Histogram(
            "notify_provider_seconds", "Duration of provider calls.", ["channel"],
            registry=registry, buckets=PROVIDER_BUCKETS,
        ).labels(channel)  # fmt: skip
        self.in_flight = Gauge(
            "notify_attempts_in_flight", "Attempts in progress or waiting to be admitted.", ["channel"],
            registry=registry,
        ).labels(channel)  # fmt: skip
        self.postponed = Counter(
            "notify_attempts_postponed", "Messages requeued without an attempt.",
            ["channel"], registry=registry,
        ).labels(channel)  # fmt: skip
        self._simulated = Counter(
            "notify_attempts_simulated", "Attempts of test keys and with recipients for tests.",
            ["channel"], registry=registry,
        ).labels(channel)  # fmt: skip
        sizes = batch_sizes(registry)
        self.observe_results_batch = sizes.labels("results").observe
        self.observe_retries_batch = sizes.labels("parkings").observe
        self.retries_scheduled = Counter(
            "notify_parked", "Messages published to a retry queue.", ["channel"], registry=registry
        ).labels(channel)

    def ended(self, result: DeliveryResult, *, simulated: bool = False) -> None:
        """Count a finished attempt or an expiry."""
        if simulated:
            self._simulated.inc()  # only that, because a client that tries out failures must not trigger the alerts
            return
        counted = self._attempts.get((result.outcome, result.error_class))
        (counted or self._counter.labels(self._channel, result.outcome, result.error_class or "")).inc()
        if result.outcome is not Outcome.EXPIRED:
            self._latency.observe((result.finished_at - result.started_at).total_seconds())


# All possible combinations, so that each time series exists from the start, with the value 0.
_COMBINATIONS = [
    (Outcome.SENT, None),
    (Outcome.EXPIRED, None),
    (Outcome.THROTTLED, ErrorClass.THROTTLED),
    (Outcome.RETRYING, ErrorClass.UNREACHABLE),
    *product((Outcome.RETRYING, Outcome.FAILED), (ErrorClass.TEMPORARY, ErrorClass.TIMEOUT, ErrorClass.UNKNOWN)),
    *product((Outcome.FAILED,), (ErrorClass.PERMANENT, ErrorClass.THROTTLED, ErrorClass.UNREACHABLE)),
]
