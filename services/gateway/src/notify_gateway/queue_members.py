"""Looks for queues that have fewer members than RabbitMQ has nodes, and would not survive the loss of a node."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

from notify_common.runtime.outage import Outage

from notify_gateway.console.queue_statistics import QueueStatistics, QueueStatisticsClient

log = logging.getLogger(__name__)

INTERVAL = 60.0  # seconds
GROUP_SIZE = 3  # members; RabbitMQ gives a queue no more, however many nodes there are


class QueueMembers:
    """Counts the queues with too few members once a minute; calls `observe` with NaN if their number is unknown."""

    def __init__(self, queues: QueueStatisticsClient, nodes: int, observe: Callable[[float], None]) -> None:
        self._queues = queues
        self._least = min(nodes, GROUP_SIZE)
        self._observe = observe
        self._outage = Outage(log, "queues have fewer members than RabbitMQ has nodes")

    async def watch(self) -> None:
        """Count until this task is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        """Count once, and log the names of some of the queues."""
        statistics = await self._queues.read()
        if statistics is None:
            self._observe(math.nan)
            return
        lacking = queues_lacking_members(statistics, self._least)
        self._observe(len(lacking))
        if lacking:
            self._outage.failed(", ".join(lacking[:5]))
        else:
            self._outage.ended()


def queues_lacking_members(statistics: Mapping[str, QueueStatistics], least: int) -> list[str]:
    """Return the names of the quorum queues with fewer than `least` members; other queues have none."""
    return sorted(name for name, queue in statistics.items() if queue.members and len(queue.members) < least)
