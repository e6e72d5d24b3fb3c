"""Faults of both clusters at once."""

import asyncio
import time

from support.cluster.brokers import Broker
from support.cluster.databases import Member

from chaos.ha.database_faults import some_members
from chaos.ha.scene import HaScene, repaired
from chaos.scene import Fault


async def kill(scene: HaScene, fault: Fault) -> None:
    """Kill a broker and the primary's machine, and start them again."""
    node, primary = await _broker_and_primary(scene, fault)
    fault.killed |= {process.pid: node.name for process in node.processes()}
    node.kill()
    primary.kill()
    fault.began = time.time()
    await asyncio.sleep(scene.hold)
    primary.start()
    node.start()
    await repaired(scene, fault)


async def freeze(scene: HaScene, fault: Fault) -> None:
    """Freeze a broker and the primary's machine until others have replaced them."""
    node, primary = await _broker_and_primary(scene, fault, after=1)
    fault.paused |= {process.pid: node.name for process in node.processes()}
    node.freeze()
    primary.freeze()
    fault.began = time.time()
    await asyncio.sleep(scene.silence)
    primary.thaw()
    node.thaw()
    await repaired(scene, fault)


async def _broker_and_primary(scene: HaScene, fault: Fault, *, after: int = 0) -> tuple[Broker, Member]:
    (node,) = scene.some_brokers(fault, 1, after=after)
    (primary,) = await some_members(scene, primary=True, standbys=0)
    return node, primary
