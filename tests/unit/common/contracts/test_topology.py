from datetime import timedelta

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.topology import Binding

LADDER = (timedelta(seconds=1), timedelta(seconds=2))
ALL = [
    *topology.all_dead_letters(),
    *topology.all_results(),
    *(topology.deliveries(channel) for channel in Channel),
    *topology.retries(Channel.EMAIL, LADDER),
]


@pytest.mark.parametrize("binding", ALL, ids=lambda binding: binding.queue.name)
def test_every_queue_is_durable_and_drops_no_messages(binding: Binding) -> None:
    arguments = dict(binding.queue.arguments or {})
    assert binding.queue.durable
    assert arguments["x-queue-type"] == "quorum"
    assert arguments["x-delivery-limit"] >= 100
    assert "x-expires" not in arguments
    if "x-dead-letter-exchange" in arguments:
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"


def test_redelivery_limits_of_results_and_dead_letters_are_out_of_reach() -> None:
    archive, _, inbox = topology.dead_letters()
    of_channels = [each for channel in Channel for each in (topology.results(channel), *topology.dead_letters(channel))]
    for binding in (archive, inbox, *of_channels):
        assert dict(binding.queue.arguments or {})["x-delivery-limit"] >= 1_000_000


def test_retry_queue_returns_messages_to_its_channel_after_the_delay() -> None:
    back, first, second = topology.retries(Channel.EMAIL, LADDER)
    assert [first.queue.name, second.queue.name] == ["notifications.email.retry.1000", "notifications.email.retry.2000"]
    arguments = dict(second.queue.arguments or {})
    assert arguments["x-message-ttl"] == 2000
    assert (arguments["x-dead-letter-exchange"], arguments["x-dead-letter-routing-key"]) == (
        "notifications.email.retry",
        "due",
    )
    assert second.routing_key == topology.retry_routing_key(LADDER[1])
    assert (back.exchange.name, back.routing_key, back.queue.name) == (
        "notifications.email.retry",
        "due",
        "notifications.email",
    )
