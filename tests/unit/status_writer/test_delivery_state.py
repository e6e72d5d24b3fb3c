"""Rules for how results change a delivery, whatever their order and however often they are repeated."""

from datetime import UTC, datetime
from functools import reduce
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import LARGEST_COUNTER, DeliveryResult, DeliveryStatus, Outcome
from notify_status_writer.delivery_state import (
    ATTEMPT_RANK,
    MAX_ATTEMPTS_AHEAD,
    DeliveryState,
    Refusal,
    Reported,
    advance,
    best_attempts,
    refusal,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ID = UUID(int=1)


def state(
    status: DeliveryStatus = DeliveryStatus.PENDING, round_: int = 1, attempt: int = 0, failures: int = 0
) -> DeliveryState:
    return DeliveryState(ID, UUID(int=2), Channel.EMAIL, status, round_, attempt, failures)


def result(outcome: Outcome, attempt: int = 1, round_: int = 1, failures: int | None = None) -> DeliveryResult:
    return DeliveryResult(
        delivery_id=ID,
        round=round_,
        attempt=attempt,
        failures=attempt if failures is None else failures,
        outcome=outcome,
        started_at=NOW,
        finished_at=NOW,
    )


results = st.builds(
    result,
    outcome=st.sampled_from(Outcome),
    attempt=st.integers(min_value=1, max_value=4),
    round_=st.integers(min_value=1, max_value=3),
    failures=st.integers(min_value=0, max_value=3),
)


@given(st.lists(results, max_size=8), st.data())
def test_result_order_and_duplicates_do_not_matter(reported: list[DeliveryResult], data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.sampled_from(reported), max_size=4)) if reported else []
    shuffled = data.draw(st.permutations(reported + repeats))
    assert reduce(advance, shuffled, state()) == reduce(advance, reported, state())


@given(st.lists(results, max_size=8))
def test_rounds_and_attempts_never_decrease(reported: list[DeliveryResult]) -> None:
    before = state()
    for each in reported:
        after = advance(before, each)
        assert (after.round, after.attempt) >= (before.round, before.attempt)
        assert after.attempt >= before.attempt
        before = after


@given(st.lists(results, min_size=1, max_size=8))
def test_sent_result_wins_whenever_it_arrives(reported: list[DeliveryResult]) -> None:
    end = reduce(advance, reported, state())
    assert (end.status is DeliveryStatus.SENT) == any(each.outcome is Outcome.SENT for each in reported)


def test_final_status_is_kept_within_a_round() -> None:
    failed = state(DeliveryStatus.FAILED, attempt=3, failures=3)
    assert advance(failed, result(Outcome.RETRYING, attempt=2)) == failed
    assert advance(failed, result(Outcome.RETRYING, attempt=4)).status is DeliveryStatus.FAILED


def test_result_from_an_earlier_round_changes_the_status_only_if_sent() -> None:
    second_round = state(DeliveryStatus.PENDING, round_=2, attempt=3)
    assert advance(second_round, result(Outcome.FAILED, attempt=3, round_=1)) == second_round
    late = advance(second_round, result(Outcome.SENT, attempt=3, round_=1))
    assert (late.status, late.round) == (DeliveryStatus.SENT, 2)
    assert advance(late, result(Outcome.FAILED, attempt=4, round_=2)).status is DeliveryStatus.SENT


def test_throttled_result_is_shown_as_retrying() -> None:
    assert advance(state(), result(Outcome.THROTTLED)).status is DeliveryStatus.RETRYING


def test_cancelled_delivery_is_not_reopened() -> None:
    cancelled = state(DeliveryStatus.CANCELLED)
    assert advance(cancelled, result(Outcome.RETRYING)).status is DeliveryStatus.CANCELLED


def test_expiry_ends_the_round_without_an_attempt() -> None:
    ended = advance(state(DeliveryStatus.RETRYING, attempt=2, failures=2), result(Outcome.EXPIRED, attempt=2))
    assert (ended.status, ended.attempt) == (DeliveryStatus.EXPIRED, 2)


@given(st.lists(results, max_size=12))
def test_each_attempt_is_written_once_with_its_highest_ranked_outcome(reported: list[DeliveryResult]) -> None:
    best = best_attempts(reported)
    attempted = [each for each in reported if each.outcome is not Outcome.EXPIRED]
    assert set(best) == {(each.delivery_id, each.attempt) for each in attempted}
    for (_, attempt), chosen in best.items():
        ranks = [ATTEMPT_RANK[each.outcome] for each in attempted if each.attempt == attempt]
        assert ATTEMPT_RANK[chosen.outcome] == max(ranks)


@pytest.mark.parametrize("channel", [Channel.EMAIL, None])
def test_result_of_the_deliverys_channel_or_of_an_older_sender_is_accepted(channel: Channel | None) -> None:
    stored = state(DeliveryStatus.FAILED, round_=2, attempt=3)
    for reported in (result(Outcome.SENT, attempt=4, round_=2), result(Outcome.SENT, attempt=1, round_=1)):
        assert refusal(stored, Reported(reported, channel)) is None
    late = result(Outcome.SENT, attempt=3 + MAX_ATTEMPTS_AHEAD)
    assert refusal(stored, Reported(late, channel)) is None


@pytest.mark.parametrize(
    ("reported", "channel", "reason"),
    [
        (result(Outcome.SENT), Channel.TELEGRAM, Refusal.OTHER_CHANNEL),
        (result(Outcome.SENT, round_=3), Channel.EMAIL, Refusal.FUTURE_ROUND),
        (result(Outcome.SENT, round_=LARGEST_COUNTER), None, Refusal.FUTURE_ROUND),
        (result(Outcome.SENT, attempt=4 + MAX_ATTEMPTS_AHEAD), Channel.EMAIL, Refusal.ATTEMPT_TOO_HIGH),
        (result(Outcome.SENT, attempt=LARGEST_COUNTER), None, Refusal.ATTEMPT_TOO_HIGH),
        (result(Outcome.FAILED, attempt=1, failures=2), Channel.EMAIL, Refusal.CONTRADICTION),
        (result(Outcome.SENT, attempt=0), Channel.EMAIL, Refusal.CONTRADICTION),
    ],
)
def test_result_that_no_sender_of_the_channel_can_have_is_refused(
    reported: DeliveryResult, channel: Channel | None, reason: Refusal
) -> None:
    assert refusal(state(round_=2, attempt=3), Reported(reported, channel)) is reason


def test_result_of_an_unknown_delivery_is_refused() -> None:
    assert refusal(None, Reported(result(Outcome.SENT), Channel.EMAIL)) is Refusal.UNKNOWN_DELIVERY
