from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.rabbitmq.events import MAX_WAITING, EventPublisher


async def test_number_of_unpublished_events_is_bounded() -> None:
    events = EventPublisher(RabbitSettings(), "test")
    change = object()
    for _ in range(3):
        events.publish([change] * (MAX_WAITING // 2))  # type: ignore[list-item]  # the changes are only counted
    assert sum(len(batch) for batch in [events._waiting.get_nowait() for _ in range(2)]) == MAX_WAITING  # noqa: SLF001
    assert events._waiting.empty()  # noqa: SLF001
