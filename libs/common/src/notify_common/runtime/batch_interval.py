"""The interval between batches: none while few items arrive, and longer under load, so that more items share a batch.

If fewer than 500 items arrive per second, fewer arrive in an interval than were in the batch before it, so batches and
intervals shrink until no item waits. Above that, intervals grow with the rate: about 15 ms at 1,000 per second.
"""

import math

FACTOR = 0.004  # seconds
LONGEST = 0.02  # seconds


def interval_after(items: int) -> float:
    """Return the minimum seconds between the start of a batch of `items` items and the start of the next one."""
    return min(FACTOR * math.sqrt(max(items - 1, 0)), LONGEST)


def no_interval(_: int) -> float:
    """Return 0, so that the next batch starts as soon as this one has ended."""
    return 0.0
