"""The clusters that faults act on."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from support.cluster.brokers import Broker, BrokerCluster
from support.cluster.databases import DatabaseCluster, Member
from support.processes import System

from chaos.load import Load
from chaos.scene import Fault

Node = TypeVar("Node", Broker, Member)


@dataclass
class HaScene:
    """The services and their clusters."""

    system: System
    brokers: BrokerCluster
    databases: DatabaseCluster
    load: Load
    hold: float
    """How long killed nodes stay down, in seconds."""
    silence: float
    """How long nodes stay frozen or cut off, in seconds: long enough for the others to take over."""
    patience: float
    """How long to wait until the clusters are complete again, in seconds."""
    turns: Counter[str] = field(default_factory=Counter)

    def some_brokers(self, fault: Fault, number: int, *, after: int = 0) -> Sequence[Broker]:
        """Return so many nodes, others each time that the same fault is injected.

        A node that was down has neither connections nor leaders of queues. So that a fault that follows on another
        finds both, it begins `after` so many nodes.
        """
        first = self.turns[fault.name] + after
        self.turns[fault.name] += 1
        nodes = self.brokers.nodes
        return [nodes[(first + each) % len(nodes)] for each in range(number)]


Act = Callable[[HaScene, Fault], Awaitable[None]]
"""Injects a fault, and returns when both clusters are complete again."""


async def repaired(scene: HaScene, fault: Fault) -> None:
    """Wait until both clusters are complete."""
    for name, cluster in (("RabbitMQ", scene.brokers), ("PostgreSQL", scene.databases)):
        try:
            async with asyncio.timeout(scene.patience):
                await cluster.complete()
        except TimeoutError:
            fault.complaints.append(f"{name}'s cluster did not become complete after: {fault.name}")
