"""The limit of open files, which also limits connections."""

import math
import resource
from functools import cache

RESERVED_FILES = 200  # for PostgreSQL, RabbitMQ and the health port


@cache
def available_files() -> float:
    """Return how many connections the limit of open files allows."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else max(limit - RESERVED_FILES, 1)
