"""Whatever is settled, in whatever order and groups: each message once, and none that is still under way."""

from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from notify_common.rabbitmq.acknowledgements import DeliveryTags


class Broker:
    """Takes acks as RabbitMQ does: of many, only up to one that is not settled yet."""

    def __init__(self, messages: int) -> None:
        self.unsettled = set(range(1, messages + 1))
        self.rejected: set[int] = set()

    def take(self, frame: spec.Basic.Ack | spec.Basic.Reject) -> None:
        tag = frame.delivery_tag
        assert tag in self.unsettled, f"unknown delivery tag {tag}"
        if isinstance(frame, spec.Basic.Reject):
            self.rejected.add(tag)
        multiple = isinstance(frame, spec.Basic.Ack) and frame.multiple
        self.unsettled -= {each for each in self.unsettled if each == tag or (multiple and each <= tag)}


@given(st.permutations(range(1, 13)), st.sets(st.integers(1, 12)), st.lists(st.integers(1, 5)))
def test_each_message_is_acknowledged_exactly_once(order: list[int], rejected: set[int], sizes: list[int]) -> None:
    broker, settled = Broker(len(order)), DeliveryTags()
    handled: set[int] = set()
    while order:
        size = sizes.pop() if sizes else 3
        group, order = order[:size], order[size:]
        for frame in settled.acknowledge(
            [tag for tag in group if tag not in rejected], [tag for tag in group if tag in rejected]
        ):
            broker.take(frame)
        handled |= set(group)
        assert broker.unsettled == set(range(1, 13)) - handled
    assert broker.rejected == rejected
    assert (settled.through, settled.beyond) == (12, set())


def test_contiguous_messages_are_acknowledged_in_one_frame() -> None:
    frames = DeliveryTags().acknowledge([2, 1, 3], [])
    assert [(frame.delivery_tag, frame.multiple) for frame in frames if isinstance(frame, spec.Basic.Ack)] == [
        (3, True)
    ]
