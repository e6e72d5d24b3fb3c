"""How long items wait for others to join their batch: not at all while few arrive, and longer the more there are.

Each item of a batch moves the next one back by half a millisecond. If fewer than 2,000 items arrive per second, fewer
arrive in that time than were in the batch, so batches and intervals shrink. If more arrive, they grow up to 30 ms.
"""

SECONDS_PER_ITEM = 0.0005
LONGEST = 0.03  # seconds


def interval_after(items: int) -> float:
    """Return the least number of seconds between the start of a batch of so many items and the start of the next."""
    return min(items * SECONDS_PER_ITEM, LONGEST)


def no_interval(_: int) -> float:
    """Return 0, so that the next batch starts as soon as this one has ended."""
    return 0.0
