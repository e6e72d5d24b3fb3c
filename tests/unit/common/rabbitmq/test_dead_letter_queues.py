"""Where a dead letter died, and where its consumers publish it."""

from typing import Any

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.dead_letters import queue_where_it_died

EMAIL, RETRY = {"queue": "notifications.email"}, {"queue": "notifications.telegram.retry.1000"}


@pytest.mark.parametrize(
    ("headers", "queue"),
    [
        ({}, None),
        ({"dead_queue": "notifications.telegram"}, "notifications.telegram"),
        ({"x-death": []}, None),
        ({"x-death": "forged", "dead_queue": "notifications.telegram"}, "notifications.telegram"),
        ({"x-death": [RETRY, EMAIL], "dead_queue": "notifications.email"}, RETRY["queue"]),
    ],
)
def test_the_queue_that_rabbitmq_names_first_is_believed_before_any_header(
    headers: dict[str, Any], queue: str | None
) -> None:
    assert queue_where_it_died(headers) == queue


@pytest.mark.parametrize("channel", Channel)
def test_every_queue_of_a_channel_has_that_channels_exchange_for_dead_letters(channel: Channel) -> None:
    queues = [topology.deliveries(channel), topology.results(channel), *topology.dead_letters(channel)]
    for binding in queues:
        assert topology.channel_of(binding.queue.name) is channel
        assert topology.dead_letter_exchange(binding.queue.name).name == f"notifications.dead.{channel}"


def test_shared_queues_have_the_shared_exchange_for_dead_letters() -> None:
    for binding in (topology.results(), *topology.dead_letters()):
        assert topology.channel_of(binding.queue.name) is None
        assert topology.dead_letter_exchange(binding.queue.name) == topology.DEAD
