"""The metrics of the gateway."""

from notify_common.contracts.channels import Channel
from notify_common.runtime.metrics import batch_sizes
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PROBES = frozenset({"/livez", "/readyz"})
REQUEST_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds


class GatewayMetrics:
    """Requests, acceptance and the outbox."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Histogram(
            "notify_http_request_seconds", "How long requests took.", ["method", "route", "status"],
            registry=registry, buckets=REQUEST_BUCKETS,
        )  # fmt: skip
        accepted = Counter(
            "notify_deliveries_accepted",
            "Deliveries committed with their notification.",
            ["channel"],
            registry=registry,
        )
        published = Counter(
            "notify_deliveries_published", "Deliveries that RabbitMQ has confirmed.", ["channel"], registry=registry
        )
        self.accepted = {channel: accepted.labels(channel) for channel in Channel}
        self.published = {channel: published.labels(channel) for channel in Channel}
        sizes = batch_sizes(registry)
        self.accepted_together = sizes.labels("accept").observe
        self.published_together = sizes.labels("publish").observe
        self.outbox_rows = Gauge(
            "notify_outbox_rows", "Deliveries that are due and not confirmed by RabbitMQ.", registry=registry
        )
        self.outbox_oldest = Gauge(
            "notify_outbox_oldest_seconds", "For how long the oldest of them has been due.", registry=registry
        )
        self.relay_connected = Gauge(
            "notify_relay_connected", "Whether the outbox relay has a connection to RabbitMQ.", registry=registry
        )
        self.listeners = Gauge("notify_listeners", "Who listens to GET /api/events.", registry=registry)
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observe a request, unless it was a health check or the client had disconnected."""
        if not status or route in PROBES:
            return
        key = (method, route, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(method, route, str(status))
        child.observe(seconds)
