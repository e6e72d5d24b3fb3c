import math
import random
from itertools import pairwise

import pytest

from benchmarks.arithmetic import (
    next_candidate,
    percentiles,
    poisson_arrivals,
    pooled,
    quantile,
    ratios,
    spread,
    steady_rate,
    sustained,
    window_count,
    worst,
)
from benchmarks.plan import Plan, Unit, plan, search_deadline


def test_quantile_is_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.99, 0.999, 1.0)] == [50, 99, 100, 100]
    assert quantile([7.0], 0.5) == 7.0


def test_percentiles_are_milliseconds() -> None:
    times = [number / 1000 for number in range(1, 1001)]
    random.Random(1).shuffle(times)
    assert percentiles(times) == pytest.approx({"p50": 500, "p99": 990, "p99.9": 999})


@pytest.mark.parametrize("sizes", [[1000], [400, 350, 1250], [1, 1000, 7]])
def test_pooled_rounds_have_the_quantile_of_all_values_together(sizes: list[int]) -> None:
    draw = random.Random(2)
    rounds = [[draw.expovariate(100) for _ in range(size)] for size in sizes]
    together = sorted(each * 1000 for one in rounds for each in one)
    assert pooled(sizes, [worst(one) for one in rounds], 0.999) == pytest.approx(quantile(together, 0.999))


def test_a_quantile_that_the_kept_values_do_not_cover_is_refused() -> None:
    with pytest.raises(ValueError, match="not enough"):
        pooled([1000], [[1.0, 2.0]], 0.99)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    arrivals = poisson_arrivals(200, 50, seed=3)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0
    assert arrivals[-1] < 50
    assert abs(len(arrivals) - 10_000) < 4 * math.sqrt(10_000)
    gaps = [after - before for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)  # even arrivals would have a deviation of 0


def test_poisson_arrivals_are_the_same_for_the_same_seed_only() -> None:
    assert poisson_arrivals(10, 10, seed=1) == poisson_arrivals(10, 10, seed=1)
    assert poisson_arrivals(10, 10, seed=1) != poisson_arrivals(10, 10, seed=2)


def test_window_contains_its_beginning_only() -> None:
    assert window_count([1.0, 1.5, 2.0], 1.0, 2.0) == 2


def test_a_load_is_sustained_if_it_is_accepted_in_time_and_sent() -> None:
    assert sustained(due=1000, accepted=985, sent=980, in_flight=0, failed=0)


@pytest.mark.parametrize(
    ("due", "accepted", "sent", "failed"),
    [(1000, 960, 960, 0), (1000, 1000, 970, 0), (1000, 1000, 1000, 1), (0, 0, 0, 0)],
    ids=["accepted too late", "backlog grows", "a request failed", "nothing was due"],
)
def test_a_load_is_not_sustained(due: int, accepted: int, sent: int, failed: int) -> None:
    assert not sustained(due=due, accepted=accepted, sent=sent, in_flight=0, failed=failed)


def test_deliveries_in_flight_may_vary_as_random_arrivals_do() -> None:
    # 100 in flight vary by 10 (one standard deviation); the backlog may grow by two of them and 2 % of what was due.
    assert sustained(due=1000, accepted=1000, sent=960, in_flight=100, failed=0)
    assert not sustained(due=1000, accepted=1000, sent=959, in_flight=100, failed=0)


def test_ratios_are_computed_round_by_round() -> None:
    assert ratios({1: 300, 2: 330, 3: 90}, {1: 100, 2: 100, 4: 1, 3: 0}) == {1: 3.0, 2: 3.3}


def test_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 9.0, 4.0]) == (4.0, 3.0, 9.0)


def test_steady_rate_ignores_the_beginning_and_the_end() -> None:
    times = [0.0] * 10 + [number / 10 for number in range(80)] + [100.0] * 10
    assert steady_rate(times) == pytest.approx(80 / 100)


def test_search_falls_until_a_rate_is_sustained_then_rises_and_bisects() -> None:
    assert next_candidate(0, math.inf, 100, 1.25) == 80
    assert next_candidate(100, math.inf, 100, 1.25) == 125
    assert next_candidate(100, 120, 120, 1.25) == 110
    assert next_candidate(100, 1000, 100, 1.25) == 125


UNITS = [
    Unit(round_ == 1, rates, losses=round_ == 3 and rates > 0)
    for round_ in (1, 2, 3)
    for _ in range(10)
    for rates in (0, 3)
]


def test_the_planned_steps_fill_the_time() -> None:
    planned = plan(43, UNITS)
    assert planned.fixed > planned.step
    assert sum(unit.total(planned.step) for unit in UNITS) == pytest.approx(42 * 60)


def test_fewer_contenders_have_longer_steps_up_to_a_limit() -> None:
    assert plan(43, UNITS[:40]).step > plan(43, UNITS).step
    assert plan(1000, UNITS) == Plan(6.0)


def test_too_little_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        plan(20, UNITS)


def test_a_search_leaves_enough_time_for_what_follows() -> None:
    step = plan(43, UNITS).step
    began = 1000.0
    deadline = search_deadline(began + 42 * 60, step, UNITS)
    assert deadline == pytest.approx(began + UNITS[0].total(step) - UNITS[0].after_search(step))
