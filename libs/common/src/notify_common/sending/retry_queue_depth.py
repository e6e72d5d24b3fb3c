"""A metric for the depth of a channel's retry queues, which is queried from RabbitMQ on each scrape."""

import math
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from prometheus_client import CollectorRegistry, Gauge

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.queue_probe import QueueProbe
from notify_common.rabbitmq.subscription import Subscription

TIMEOUT = 2.0  # seconds


class RetryQueueDepth:
    """The number of messages that wait for their next attempt. All senders of a channel report the same number."""

    def __init__(
        self,
        subscription: Subscription,
        channel: Channel,
        delays: Iterable[timedelta],
        registry: CollectorRegistry,
    ) -> None:
        self._subscription = subscription
        self._probe = QueueProbe(*(topology.retry_queue_name(channel, delay) for delay in delays))
        self._gauge = Gauge(
            "notify_retries_waiting", "Messages in the channel's retry queues.", ["channel"], registry=registry
        ).labels(channel)
        self._gauge.set(math.nan)

    async def count(self) -> None:
        """Query each queue. The metric is NaN if RabbitMQ does not answer."""
        waiting = math.nan
        if (connection := self._subscription.connection) is not None:
            with suppress(BrokerUnavailable):
                declared = await self._probe.ask(connection, TIMEOUT)
                waiting = sum(each.message_count or 0 for each in declared)
        self._gauge.set(waiting)
