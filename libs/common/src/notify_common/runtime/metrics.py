"""Metrics for Prometheus: names, units and buckets after its conventions; no id is ever a label.

https://prometheus.io/docs/practices/naming/. Each part makes its own in the registry of its process.
"""

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # items


def process_registry() -> CollectorRegistry:
    """What every process tells about itself: memory, CPU, file descriptors, garbage collections."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accepted: str) -> tuple[bytes, str]:
    """All metrics and their content type, in the format that the `Accept` header asks for."""
    try:
        encode, content_type = choose_encoder(accepted)
    except (TypeError, ValueError):  # a header that it does not understand
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


def group_sizes(registry: CollectorRegistry) -> Histogram:
    """Of what goes together in one write or one publish, by the step that it belongs to."""
    return Histogram(
        "notify_group_size", "Items committed or published together.", ["step"],
        registry=registry, buckets=SIZE_BUCKETS,
    )  # fmt: skip
