"""Messages are acknowledged in any order and in batches, each exactly once and never while still in flight."""

from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from notify_common.rabbitmq.acknowledgements import DeliveryTags


class Broker:
    """A fake broker that, like RabbitMQ, accepts a delivery tag only once."""

    def __init__(self, messages: int) -> None:
        self.unacked = set(range(1, messages + 1))
        self.rejected: set[int] = set()

    def receive(self, frame: spec.Basic.Ack | spec.Basic.Reject) -> None:
        tag = frame.delivery_tag
        assert tag in self.unacked, f"unknown delivery tag {tag}"
        if isinstance(frame, spec.Basic.Reject):
            self.rejected.add(tag)
        multiple = isinstance(frame, spec.Basic.Ack) and frame.multiple
        self.unacked -= {each for each in self.unacked if each == tag or (multiple and each <= tag)}


@given(st.permutations(range(1, 13)), st.sets(st.integers(1, 12)), st.lists(st.integers(1, 5)))
def test_each_message_is_acknowledged_exactly_once(order: list[int], rejected: set[int], sizes: list[int]) -> None:
    broker, tags = Broker(len(order)), DeliveryTags()
    handled: set[int] = set()
    while order:
        size = sizes.pop() if sizes else 3
        batch, order = order[:size], order[size:]
        for frame in tags.acknowledge(
            [tag for tag in batch if tag not in rejected], [tag for tag in batch if tag in rejected]
        ):
            broker.receive(frame)
        handled |= set(batch)
        assert broker.unacked == set(range(1, 13)) - handled
    assert broker.rejected == rejected
    assert (tags.through, tags.beyond) == (12, set())


def test_contiguous_messages_are_acknowledged_in_one_frame() -> None:
    frames = DeliveryTags().acknowledge([2, 1, 3], [])
    assert [(frame.delivery_tag, frame.multiple) for frame in frames if isinstance(frame, spec.Basic.Ack)] == [
        (3, True)
    ]
