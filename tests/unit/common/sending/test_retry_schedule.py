from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notify_common.sending.rate_limiter import LONGEST_TURN_WAIT
from notify_common.sending.retry_schedule import LONGEST_DELAY, TOLERANCE, RetrySchedule

delays = st.timedeltas(min_value=timedelta(milliseconds=10), max_value=LONGEST_DELAY)


def test_delay_doubles_after_each_failure() -> None:
    schedule = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=3)
    assert [schedule.delay_after(failures).total_seconds() for failures in (1, 2, 3, 4)] == [1, 2, 4, 8]


def test_retry_budget_is_exhausted_after_the_maximum_number_of_attempts() -> None:
    schedule = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=3)
    assert [schedule.exhausted(failures) for failures in (1, 2, 3, 4)] == [False, False, True, True]


@given(delays)
def test_retry_delays_double_up_to_an_hour(first: timedelta) -> None:
    schedule = RetrySchedule(first_delay=first, max_attempts=3)
    delays = [schedule.delay_after(failures) for failures in range(1, 30)]
    delays = delays[: delays.index(delays[-1]) + 1]
    assert delays[0] == first
    assert LONGEST_DELAY / TOLERANCE <= delays[-1] <= LONGEST_DELAY
    assert all(longer == shorter * 2 for shorter, longer in pairwise(delays[:-1]))
    # Otherwise a wait could be within the tolerance of two delays.
    assert all(shorter * TOLERANCE < longer for shorter, longer in pairwise(delays))


@given(delays, st.integers(min_value=1, max_value=10_000))
def test_every_backoff_needs_only_one_retry_queue(first: timedelta, failures: int) -> None:
    schedule = RetrySchedule(first_delay=first, max_attempts=3)
    delay = schedule.delay_after(failures)
    assert schedule.queue_delay(delay) == delay


@given(delays, st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=90)))
def test_chained_delays_cover_the_wait_with_little_overshoot(first: timedelta, wait: timedelta) -> None:
    schedule = RetrySchedule(first_delay=first, max_attempts=3)
    waited = min(wait // LONGEST_DELAY, 10_000) * LONGEST_DELAY  # skip whole multiples of the longest delay
    while waited < wait:
        waited += schedule.queue_delay(wait - waited)
    longest_turn_wait = timedelta(seconds=LONGEST_TURN_WAIT)
    assert wait <= waited <= wait + max(min(first, longest_turn_wait), LONGEST_DELAY * (TOLERANCE - 1))


@given(delays, st.integers(min_value=1, max_value=30), st.floats(min_value=0, max_value=0.04))
def test_slightly_elapsed_backoff_still_needs_only_one_retry_queue(
    first: timedelta, failures: int, elapsed: float
) -> None:
    schedule = RetrySchedule(first_delay=first, max_attempts=3)
    delay = schedule.delay_after(failures)
    assert schedule.queue_delay(delay * (1 - elapsed)) == delay


@given(delays, st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=2)))
def test_exact_wait_is_exceeded_by_no_more_than_a_sender_waits_for_a_turn(first: timedelta, wait: timedelta) -> None:
    schedule = RetrySchedule(first_delay=first, max_attempts=3)
    waited, hops = min(wait // LONGEST_DELAY, 10_000) * LONGEST_DELAY, 0
    while waited < wait:
        waited += schedule.queue_delay(wait - waited, exact=True)
        hops += 1
    assert wait <= waited < wait + min(first, timedelta(seconds=LONGEST_TURN_WAIT))
    assert hops <= len(schedule.delays) + 1


@pytest.mark.parametrize(
    ("available", "wait", "delay"), [([1, 4, 8], 2, 1), ([2, 4], 1, 2), ([1, 2, 8], 7, 2), ([8], 3, 8)]
)
def test_wait_without_its_queue_gets_a_shorter_one_or_else_the_next_longer_one(
    available: list[int], wait: int, delay: int
) -> None:
    schedule = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=3)
    delays = [timedelta(seconds=each) for each in available]
    assert schedule.queue_delay(timedelta(seconds=wait), delays=delays) == timedelta(seconds=delay)


def test_tolerance_does_not_exceed_the_latest_possible_time() -> None:
    schedule = RetrySchedule(first_delay=timedelta(seconds=1), max_attempts=3)
    wait, hour = timedelta(seconds=3430), timedelta(hours=1)
    assert schedule.queue_delay(wait, latest=hour) == hour
    assert schedule.queue_delay(wait, latest=timedelta(seconds=3440)) == timedelta(seconds=2048)
    assert schedule.queue_delay(wait, latest=wait / 2) == timedelta(seconds=2048)


@pytest.mark.parametrize(("seconds", "delay"), [(0, 4.6875), (11, 9.375), (64, 37.5), (580, 600)])
def test_wait_that_is_shorter_than_the_first_delay_does_not_take_all_of_it(seconds: float, delay: float) -> None:
    schedule = RetrySchedule(first_delay=timedelta(minutes=10), max_attempts=3)
    assert schedule.queue_delay(timedelta(seconds=seconds)) == timedelta(seconds=delay)
