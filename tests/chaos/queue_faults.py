"""Faults of a single queue: full, unbound, or without a majority. The other channels must not notice."""

import asyncio
import time

import httpx
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_local.console import say

from chaos.load import Kind
from chaos.process_faults import paused
from chaos.scene import Fault, Scene
from chaos.server_faults import rabbitmqctl

# Shorter than the time after which RabbitMQ repeats a move out of a retry queue, and closes a silent connection.
REFUSAL = 15.0  # seconds
# More than the prefetched messages of two senders, which do not count towards the limit of a queue.
FILLING = 1_100  # notifications
FULL_AT = 1  # messages
POLICY = "/api/operator-policies/%2F/chaos"


async def fill_queue(scene: Scene, fault: Fault) -> None:
    """Pause a channel's senders and limit the length of its queue, so that the queue refuses messages."""
    channel = fault.refused = _channel(scene)
    pattern = f"^{topology.delivery_queue_name(channel).replace('.', '[.]')}$"
    policy = {"pattern": pattern, "definition": {"max-length": FULL_AT}, "apply-to": "queues"}
    async with scene.management() as management:
        (await management.put(POLICY, json=policy)).raise_for_status()
        try:
            async with asyncio.TaskGroup() as group:
                # The pause is too short for the senders to lose their connections, so it explains no second send.
                group.create_task(paused(scene.system, [f"{channel}_sender", f"{channel}_sender-2"], REFUSAL))
                group.create_task(scene.load.post_many(FILLING, Kind.ONE_CHANNEL, channel, seconds=REFUSAL))
                group.create_task(_report_when_full(management, topology.delivery_queue_name(channel)))
        finally:
            (await management.delete(POLICY)).raise_for_status()


async def _report_when_full(management: httpx.AsyncClient, queue: str) -> None:
    """Say after how long the queue was full; a slow machine may not fill it before the senders continue."""
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < REFUSAL:
        statistics = (await management.get(f"/api/queues/%2F/{queue}")).raise_for_status().json()
        if statistics.get("messages_ready", 0) >= FULL_AT:
            say(f"{queue} was full after {elapsed:.0f} s")
            return
        await asyncio.sleep(0.5)
    say(f"{queue} was never full: this machine is too slow to fill it")


async def unbind_queue(scene: Scene, fault: Fault) -> None:
    """Delete the binding of a channel's queue. Bind it again afterwards, unless the services have done so."""
    channel = fault.refused = _channel(scene)
    exchange, queue = topology.NOTIFICATIONS.name, topology.delivery_queue_name(channel)
    path = f"/api/bindings/%2F/e/{exchange}/q/{queue}"
    async with scene.management() as management:
        (await management.delete(f"{path}/{channel}")).raise_for_status()
        await asyncio.sleep(min(scene.outage, REFUSAL))
        if (await management.get(f"{path}/{channel}")).is_success:
            say(f"the services have bound {queue} again")
        else:
            (await management.post(path, json={"routing_key": channel})).raise_for_status()


async def stop_queue(scene: Scene, fault: Fault) -> None:
    """Stop the only replica of a channel's queue. As without a majority of replicas, it confirms nothing."""
    channel = fault.refused = _channel(scene)
    replica = f"{{'%2F_{topology.delivery_queue_name(channel)}', node()}}"
    await rabbitmqctl(scene, "eval", f"ok = ra:stop_server(quorum_queues, {replica}).")
    await asyncio.sleep(min(scene.outage, REFUSAL))
    await rabbitmqctl(scene, "eval", f"ok = ra:restart_server(quorum_queues, {replica}).")


def _channel(scene: Scene) -> Channel:
    return scene.rng.choice(list(Channel))
