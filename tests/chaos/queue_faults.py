"""Faults of a single queue: full, unbound, or without a majority. The other channels must not notice."""

import asyncio

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_local.console import say

from chaos.process_faults import paused
from chaos.scene import Fault, Scene
from chaos.server_faults import rabbitmqctl

# Shorter than the time after which RabbitMQ repeats a move out of a retry queue, and closes a silent connection.
REFUSAL = 15.0  # seconds
FULL_AT = 100  # messages
DRAINED_AFTER = 10.0  # seconds in which the senders reconnect and empty the queue
POLICY = "/api/operator-policies/%2F/chaos"


async def fill_queue(scene: Scene, fault: Fault) -> None:
    """Limit the length of a channel's queue while its senders are paused and disconnected, so that it refuses more."""
    channel = fault.refused = _channel(scene)
    pattern = f"^{topology.delivery_queue_name(channel).replace('.', '[.]')}$"
    policy = {"pattern": pattern, "definition": {"max-length": FULL_AT}, "apply-to": "queues"}
    sender = f"{channel}_sender"
    async with scene.management() as management:
        (await management.put(POLICY, json=policy)).raise_for_status()
        try:
            with paused(scene.system, [sender, f"{sender}-2"]) as processes:
                fault.paused |= processes
                # Prefetched messages do not count towards the limit. They return to the queue with the connection.
                for connection in (await management.get("/api/connections")).raise_for_status().json():
                    if connection["client_properties"].get("connection_name", "").startswith(sender):
                        await management.delete(f"/api/connections/{connection['name']}")
                await asyncio.sleep(min(scene.outage, REFUSAL))
            # RabbitMQ 3.10 accepts messages again when a queue shrinks, but not when its limit is lifted.
            await asyncio.sleep(DRAINED_AFTER)
        finally:
            (await management.delete(POLICY)).raise_for_status()


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
