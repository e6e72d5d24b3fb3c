"""How several gateways share the limit of a key, with a clock and a shared bucket that the test controls."""

from collections.abc import Callable, Sequence

import pytest
from notify_gateway.http.rate_limit import BURST_SECONDS, RequestRateLimiter, SharedBucket

TICK = 0.01  # seconds
KEY = "key"
Load = Callable[[float], Sequence[int]]
"""The requests that arrive at each gateway in a tick, by the time."""


class Bucket:
    """The shared bucket, as PostgreSQL calculates it (the statement `REPORT`)."""

    def __init__(self, per_second: float) -> None:
        self.per_second, self.size = per_second, per_second * BURST_SECONDS
        self.tokens, self.requests, self.updated_at = self.size, 0, 0.0

    def report(self, limiter: RequestRateLimiter, now: float) -> None:
        if usage := limiter.usage(now):
            [(_, _, admitted, requests)] = usage
            self.tokens = min(self.size, self.tokens - admitted + self.per_second * (now - self.updated_at))
            self.requests += requests
            self.updated_at = now
            limiter.reported(usage, [SharedBucket(KEY, self.tokens, self.requests)], now)


def admitted_by(gateways: int, per_second: int, load: Load, seconds: int) -> list[list[int]]:
    """Return how many requests each gateway admits in each second. The gateways report at different times."""
    limiters, bucket = [RequestRateLimiter(per_second) for _ in range(gateways)], Bucket(per_second)
    ticks = round(1 / TICK)
    admitted = [[0] * gateways for _ in range(seconds)]
    for tick in range(seconds * ticks):
        now = tick * TICK
        for gateway, (limiter, arriving) in enumerate(zip(limiters, load(now), strict=True)):
            for _ in range(arriving):
                admitted[tick // ticks][gateway] += "Retry-After" not in limiter.count(KEY, now)
            if tick % ticks == (gateway + 1) * ticks // (gateways + 1):
                bucket.report(limiter, now)
    return admitted


@pytest.mark.parametrize("gateways", [1, 2, 3, 10])
@pytest.mark.parametrize("per_second", [1, 10, 100])
def test_gateways_together_admit_the_limit(gateways: int, per_second: int) -> None:
    seconds, per_tick = 120, max(1, per_second // 20)
    admitted = admitted_by(gateways, per_second, lambda _: [per_tick] * gateways, seconds)
    total = sum(map(sum, admitted))
    # In the long run the limit is exact: what several gateways admit too much at first is paid back.
    burst, unreported = per_second * BURST_SECONDS, gateways * max(1.0, per_second)
    assert per_second * seconds * 0.97 - gateways <= total <= per_second * seconds + burst + unreported


def test_steady_overload_is_admitted_evenly() -> None:
    admitted = admitted_by(2, 1000, lambda _: [20, 20], 30)
    for second in admitted[15:]:
        assert sum(second) == pytest.approx(1000, rel=0.05)
        assert second == pytest.approx([500, 500], rel=0.1)


def test_gateway_with_more_of_the_load_gets_more_of_the_limit() -> None:
    admitted = admitted_by(2, 1000, lambda _: [1, 39], 30)
    for second in admitted[15:]:
        assert sum(second) == pytest.approx(1000, rel=0.05)
        assert second[0] == pytest.approx(25, abs=25)


def test_limit_holds_while_the_load_moves_between_the_gateways() -> None:
    admitted = admitted_by(2, 1000, lambda now: [40, 0] if now % 4 < 2 else [0, 40], 60)
    assert sum(map(sum, admitted)) <= 1000 * (60 + BURST_SECONDS + 2)


@pytest.mark.parametrize(("per_second", "per_tick"), [(1000, 5), (20, 0.1)])
def test_key_within_its_limit_is_not_rejected_when_its_load_moves(per_second: int, per_tick: float) -> None:
    sent = 0.0

    def load(now: float) -> Sequence[int]:
        nonlocal sent
        before, sent = sent, sent + per_tick
        arriving = int(sent) - int(before)
        return [arriving, 0] if now % 60 < 30 else [0, arriving]

    admitted = admitted_by(2, per_second, load, 240)
    assert sum(map(sum, admitted)) == int(sent)


def test_gateway_gets_the_whole_limit_soon_after_the_other_one_stops() -> None:
    admitted = admitted_by(2, 1000, lambda now: [20, 20 if now < 10 else 0], 20)
    for second in admitted[14:]:
        assert second[0] == pytest.approx(1000, rel=0.05)


def test_key_within_its_limit_is_never_rejected() -> None:
    admitted = admitted_by(3, 1000, lambda _: [3, 3, 3], 30)
    assert all(sum(second) == 900 for second in admitted)


def test_retry_after_says_when_the_next_request_is_admitted() -> None:
    limiter = RequestRateLimiter(10)
    for _ in range(20):
        limiter.count(KEY, 0.0)
    usage = limiter.usage(0.0)
    limiter.reported(usage, [SharedBucket(KEY, -25.0, 100)], 0.0)
    headers = limiter.count(KEY, 0.0)
    assert (headers["RateLimit"], headers["Retry-After"]) == ('"key";r=0;t=3', "3")
    assert "Retry-After" not in limiter.count(KEY, 3.0)
