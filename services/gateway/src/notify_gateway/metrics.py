"""The gateway's metrics."""

import math
from enum import StrEnum
from functools import partial

from notify_common.contracts.channels import Channel
from notify_common.runtime.metrics import batch_sizes
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PROBES = frozenset({"/livez", "/readyz"})
REQUEST_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds


class AuthenticationFailure(StrEnum):
    """A reason why a request was rejected with 401 or, if there were too many before it, with 429."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    THROTTLED = "throttled"


class GatewayMetrics:
    """Metrics of HTTP requests, accepted deliveries and the outbox."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Histogram(
            "notify_http_request_seconds", "The duration of HTTP requests.", ["method", "route", "status"],
            registry=registry, buckets=REQUEST_BUCKETS,
        )  # fmt: skip
        per_channel = partial(Counter, labelnames=["channel"], registry=registry)
        accepted = per_channel("notify_deliveries_accepted", "Deliveries that were accepted and committed.")
        published = per_channel("notify_deliveries_published", "Deliveries that RabbitMQ has confirmed.")
        self.accepted = {channel: accepted.labels(channel) for channel in Channel}
        self.published = {channel: published.labels(channel) for channel in Channel}
        self.repaired = Counter(
            "notify_deliveries_repaired",
            "Deliveries put back into the outbox because nothing was heard of them for too long.",
            registry=registry,
        )
        sizes = batch_sizes(registry)
        self.observe_accepted_batch = sizes.labels("accept").observe
        self.observe_published_batch = sizes.labels("publish").observe
        gauge = partial(Gauge, registry=registry)
        self.outbox_rows = gauge("notify_outbox_rows", "Deliveries that are due and not confirmed by RabbitMQ.")
        self.outbox_oldest = gauge("notify_outbox_oldest_seconds", "How long the oldest due delivery has waited.")
        self.outbox_unknown_channel_rows = gauge(
            "notify_outbox_unknown_channel_rows",
            "Due deliveries over channels that this version does not know, and that a newer version must publish.",
        )
        self.relay_connected = gauge("notify_relay_connected", "1 if the outbox relay is connected to RabbitMQ.")
        self.topology_mismatches = gauge(
            "notify_topology_mismatches", "Queues and exchanges in RabbitMQ with other arguments than expected."
        )
        self.queues_lacking_members = gauge(
            "notify_queues_lacking_members", "Queues with fewer members than RabbitMQ has nodes, or than three."
        )
        self.subscribers = gauge("notify_listeners", "Subscribers of GET /api/events on this gateway.")
        self.clock_offset = gauge("notify_clock_offset_seconds", "How far this clock is ahead of PostgreSQL's.")
        self.partitions_ahead = gauge(
            "notify_partitions_ahead_seconds", "For how long there are partitions, five weeks if all is well."
        )
        for unknown in (self.clock_offset, self.partitions_ahead, self.queues_lacking_members):
            unknown.set(math.nan)  # until the first look, because 0 has a meaning
        failures = Counter(
            "notify_authentication_failures", "Requests without a valid API key.", ["reason"], registry=registry
        )
        self._authentication_failures = {reason: failures.labels(reason) for reason in AuthenticationFailure}
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def count_authentication_failure(self, reason: AuthenticationFailure) -> None:
        """Count a request without a valid API key."""
        self._authentication_failures[reason].inc()

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observe a request, unless it was a health check or its client disconnected before the response."""
        if not status or route in PROBES:
            return
        key = (method, route, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(method, route, str(status))
        child.observe(seconds)
