from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from notify_common.contracts.ids import first_id_at, new_id, to_millisecond

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
times = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=8000 * 365)).map(lambda age: EPOCH + age)


@given(times)
def test_id_is_a_uuid7_that_encodes_its_time(time: datetime) -> None:
    created_at = to_millisecond(time)
    id_ = new_id(created_at)
    assert id_.version == 7
    assert EPOCH + timedelta(milliseconds=id_.int >> 80) == created_at


@given(times, times)
def test_first_id_at_a_time_separates_earlier_from_later_ids(time: datetime, bound: datetime) -> None:
    created_at = to_millisecond(time)
    assert (new_id(created_at) >= first_id_at(bound)) == (created_at >= bound)


def test_first_id_is_defined_for_any_time() -> None:
    assert first_id_at(datetime(1900, 1, 1, tzinfo=UTC)).int == 0
    assert first_id_at(datetime(9999, 12, 31, tzinfo=UTC)) > new_id(datetime(9999, 12, 30, tzinfo=UTC))
