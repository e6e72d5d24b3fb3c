"""Prometheus metrics, named according to its conventions (https://prometheus.io/docs/practices/naming/).

Each component creates its metrics in its process's registry. Ids are never used as labels.
"""

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # items


def process_registry() -> CollectorRegistry:
    """Return a registry with metrics about the process: memory, CPU, file descriptors, garbage collection."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accepted: str) -> tuple[bytes, str]:
    """Return all metrics and their content type, in the format that the `Accept` header requests."""
    try:
        encode, content_type = choose_encoder(accepted)
    except (TypeError, ValueError):  # the header cannot be parsed
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


def batch_sizes(registry: CollectorRegistry) -> Histogram:
    """Return a histogram of batch sizes, labelled by step."""
    return Histogram(
        "notify_group_size", "Items per committed or published batch.", ["step"],
        registry=registry, buckets=SIZE_BUCKETS,
    )  # fmt: skip
