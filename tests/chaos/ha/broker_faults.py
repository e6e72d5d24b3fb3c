"""Faults of RabbitMQ's nodes."""

import asyncio

from support.cluster.brokers import Broker

from chaos.ha.scene import Act, HaScene, repaired
from chaos.scene import Fault


def killing(number: int) -> Act:
    """Return a fault that kills so many nodes, and starts them again."""

    async def act(scene: HaScene, fault: Fault) -> None:
        nodes = scene.some_brokers(fault, number)
        for node in nodes:
            fault.killed |= {process.pid: node.name for process in node.processes()}
            node.kill()
        await asyncio.sleep(scene.hold)
        for node in nodes:
            node.start()
        await repaired(scene, fault)

    return act


def freezing(number: int) -> Act:
    """Return a fault that freezes so many nodes until the others have replaced them."""

    async def act(scene: HaScene, fault: Fault) -> None:
        nodes = scene.some_brokers(fault, number, after=1)
        for node in nodes:
            fault.paused |= {process.pid: node.name for process in node.processes()}
            node.freeze()
        await asyncio.sleep(scene.silence)
        for node in nodes:
            node.thaw()
        await repaired(scene, fault)

    return act


async def cut_off(scene: HaScene, fault: Fault) -> None:
    """Cut a node off from the others, but not from its clients."""
    (node,) = scene.some_brokers(fault, 1, after=2)
    scene.brokers.links.cut(node.number)
    await asyncio.sleep(scene.silence)
    scene.brokers.links.restore(node.number)
    await repaired(scene, fault)


async def restart_in_turn(scene: HaScene, fault: Fault) -> None:
    """Restart all nodes in turn, each once the one before it is back."""
    for node in scene.brokers.nodes:
        await asyncio.to_thread(node.process.stop)
        node.start()
        await repaired(scene, fault)


async def come_back_empty(scene: HaScene, fault: Fault) -> None:
    """Replace a node's disk: remove the node from the cluster, let it join again, and give it members of all queues."""
    node, other = scene.some_brokers(fault, 2)
    node.kill()
    node.wipe()
    await asyncio.to_thread(other.control, "forget_cluster_node", node.node)
    node.start()
    await scene.brokers.joined(node)
    await asyncio.to_thread(_add_members, other, node)
    await repaired(scene, fault)


def _add_members(other: Broker, node: Broker) -> None:
    other.control("grow", node.node, "all", program="rabbitmq-queues")
