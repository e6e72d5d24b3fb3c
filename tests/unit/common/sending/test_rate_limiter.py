from collections import defaultdict
from datetime import timedelta
from heapq import heappop, heappush
from itertools import pairwise

import pytest
from notify_common.sending.rate_limiter import LONGEST_TURN_WAIT, MAX_KEYS, RateLimiter
from notify_common.sending.recipient_turns import RecipientTurns
from notify_common.sending.retry_schedule import RetrySchedule


class Simulation:
    """Senders that share one queue and its retry queues, on a simulated clock."""

    def __init__(
        self, senders: int, rate: float, *, key_of: dict[int, str] | None = None, first_delay: float = 1
    ) -> None:
        self._schedule = RetrySchedule(first_delay=timedelta(seconds=first_delay), max_attempts=3)
        self._limiters = [RateLimiter(senders / rate) for _ in range(senders)]  # each has its share of the rate
        self._key_of = key_of or {}
        self._events: list[tuple[float, int, int, float | None]] = []
        self._deliveries = 0
        self.called_at: dict[int, float] = {}
        self.hops: defaultdict[int, int] = defaultdict(int)

    def run(self, messages: int) -> None:
        """Deliver the messages at time 0, and handle them until all are sent."""
        for message in range(messages):
            self._deliver(0, message, None)
        while self._events:
            now, number, message, turn = heappop(self._events)
            self._handle(self._limiters[number % len(self._limiters)], now, message, turn)

    def _deliver(self, at: float, message: int, turn: float | None) -> None:
        heappush(self._events, (at, self._deliveries, message, turn))
        self._deliveries += 1

    def _handle(self, limiter: RateLimiter, now: float, message: int, turn: float | None) -> None:
        key = self._key_of.get(message, "")
        turn = limiter.reserve(key, now) if turn is None else turn
        if turn - now > LONGEST_TURN_WAIT:
            delay = self._schedule.queue_delay(timedelta(seconds=turn - now), exact=True)
            self.hops[message] += 1
            self._deliver(now + delay.total_seconds(), message, turn)
        elif turn > now:
            # The sender waits for the turn, and other senders' messages are handled in the meantime.
            heappush(self._events, (turn, self._limiters.index(limiter), message, turn))
        else:
            self.called_at[message] = limiter.redeem(key, now)


@pytest.mark.parametrize("senders", [1, 2])
def test_burst_takes_as_long_as_its_rate_demands_and_keeps_the_order_of_each_recipient(senders: int) -> None:
    simulation = Simulation(senders, rate=5)
    simulation.run(600)
    assert len(simulation.called_at) == 600
    assert max(simulation.called_at.values()) == pytest.approx(120, rel=0.02)
    for recipient in range(10):
        times = [simulation.called_at[message] for message in range(recipient, 600, 10)]
        assert times == sorted(times)
    # At no time are there more calls than the rate allows.
    for earlier, later in pairwise(sorted(simulation.called_at.values())[::senders]):
        assert later - earlier >= senders / 5 - 1e-6
    assert max(simulation.hops.values()) <= 7  # the binary logarithm of the wait


@pytest.mark.parametrize("first_delay", [1, 5, 15, 30, 60, 3600])
def test_turns_are_on_time_however_long_the_retry_delay_is(first_delay: float) -> None:
    simulation = Simulation(1, rate=1, first_delay=first_delay)
    simulation.run(300)
    assert [simulation.called_at[message] for message in range(300)] == pytest.approx(list(range(300)))


def test_busy_recipient_does_not_delay_the_others() -> None:
    simulation = Simulation(1, rate=1, key_of={**dict.fromkeys(range(100), "busy"), 100: "quiet"})
    simulation.run(101)
    assert simulation.called_at[100] == 0
    assert [simulation.called_at[message] for message in range(100)] == pytest.approx(list(range(100)))


def test_only_calls_with_the_same_key_are_spaced_out() -> None:
    limiter = RateLimiter(0.5)
    assert [limiter.reserve("a", 10.0) for _ in range(3)] == [10, 10.5, 11]
    assert limiter.reserve("b", 10.0) == 10
    assert limiter.reserve("a", 20.0) == 20


def test_time_after_the_latest_possible_one_is_not_reserved() -> None:
    limiter = RateLimiter(0.5)
    assert [limiter.reserve("a", 0.0, latest=1) for _ in range(5)] == [0, 0.5, 1, 1.5, 1.5]


def test_reservation_is_redeemed_without_waiting_for_later_ones() -> None:
    limiter = RateLimiter(1)
    for _ in range(100):
        limiter.reserve("a", 0.0)
    assert limiter.redeem("a", 0.2) == 0.2
    assert limiter.redeem("a", 0.3) == 1.2


def test_reservation_of_another_process_keeps_its_distance_from_the_last_call() -> None:
    limiter = RateLimiter(1)
    assert limiter.redeem("a", 5.0) == 5
    assert limiter.redeem("a", 5.5) == 6
    assert limiter.reserve("a", 5.5) == 7


def test_further_message_counts_at_its_time() -> None:
    limiter = RateLimiter(0.25)
    assert limiter.redeem("a", 0.0, further=[1.0]) == 0
    # The further message of the first call comes at 1.0.
    assert [limiter.redeem("a", now) for now in (0.25, 0.5, 0.75, 1.0, 1.25)] == [0.25, 0.5, 0.75, 1.25, 1.5]


def test_call_that_is_not_made_has_no_further_messages() -> None:
    limiter = RateLimiter(1)
    assert limiter.redeem("a", 0.0) == 0
    assert limiter.redeem("a", 0.5, latest=0.5, further=[1.0]) == 1
    assert [limiter.redeem("a", now) for now in (1.0, 2.0)] == [1, 2]


def test_further_messages_of_a_call_that_has_ended_do_not_count() -> None:
    limiter = RateLimiter(0.25)
    first, second = [1.0, 2.0, 3.0], [0.75, 1.0]
    assert limiter.redeem("a", 0.0, further=first) == 0
    assert limiter.redeem("a", 0.25, further=second) == 0.25
    limiter.withdraw("a", 1.0, 0.0, first)
    # The further messages that come at 1.0 count, and so does the other one of the second call.
    assert [limiter.redeem("a", now) for now in (1.0, 2.0, 3.0)] == [1.75, 2.0, 3.0]


def test_turns_leave_room_for_the_further_messages_of_a_recipient() -> None:
    turns = RecipientTurns(rate=1)
    assert [turns.reserve("a", 0.0, messages=messages) for messages in (1, 3, 1)] == [0, 1, 4]
    assert turns.redeem("a", 0.0) == 0
    assert turns.redeem("a", 1.0, further=[1.0, 2.0]) == 1
    assert turns.next_call("a", 1.5) == 4
    assert turns.redeem("a", 4.0) == 4


def test_limiter_forgets_the_keys_that_were_idle_for_longest() -> None:
    limiter = RateLimiter(1000)
    for number in range(MAX_KEYS + 1):
        limiter.reserve(str(number), 0.0)
    assert limiter.reserve(str(MAX_KEYS), 0.0) == 1000
    assert limiter.reserve("0", 0.0) == 0


def test_throttled_recipient_gets_its_next_turns_afterwards() -> None:
    turns = RecipientTurns(rate=1)
    turns.throttle("a", 0.0, until=30)
    assert [turns.reserve("a", 1.0) for _ in range(2)] == [30, 31]
    assert turns.redeem("a", 2.0) == 30
    assert turns.reserve("b", 1.0) == 1


def test_throttled_recipients_count_until_another_one_is_served() -> None:
    turns = RecipientTurns(rate=0)
    assert [turns.throttle(recipient, 0.0, until=3600) for recipient in "aab"] == [False, False, True]
    turns.served("a", now=0.5)
    assert turns.throttle("c", 1.0, until=3600)
    turns.served("d", now=1.5)
    assert not turns.throttle("a", 2.0, until=3600)
    assert turns.next_call("b", 4.0) == 3600


def test_recipient_that_is_served_after_its_wait_no_longer_counts_as_throttled() -> None:
    turns = RecipientTurns(rate=0)
    assert [turns.throttle(recipient, 0.0, until=5) for recipient in "ab"] == [False, True]
    turns.served("a", now=4)
    assert turns.throttle("a", 4.0, until=5)
    turns.served("a", now=5)
    turns.served("b", now=5)
    assert not turns.throttle("a", 6.0, until=9)
