"""Faults of PostgreSQL's members and of the machines on which they run.

A fault begins when the members have failed: finding the primary takes a moment, in which requests are still accepted.
"""

import asyncio
import time

from support.cluster.databases import Member
from support.cluster.process import freeze, kill

from chaos.ha.scene import Act, HaScene, repaired
from chaos.scene import Fault

LAG = 3.0  # seconds


async def kill_primary(scene: HaScene, fault: Fault) -> None:
    """Kill the primary's PostgreSQL, and leave its Patroni alive."""
    primary = await scene.databases.primary()
    primary.kill_postgres()
    fault.began = time.time()
    await asyncio.sleep(scene.hold)
    await repaired(scene, fault)


def killing(*, primary: bool, standbys: int) -> Act:
    """Return a fault that kills these members' machines, and starts them again."""

    async def act(scene: HaScene, fault: Fault) -> None:
        members = await some_members(scene, primary=primary, standbys=standbys)
        for member in members:
            member.kill()
        fault.began = time.time()
        await asyncio.sleep(scene.hold)
        for member in members:
            member.start()
        await repaired(scene, fault)

    return act


async def down_until_replaced(scene: HaScene, fault: Fault) -> None:
    """Kill the primary's machine, and start it again once another member has taken over."""
    (primary,) = await some_members(scene, primary=True, standbys=0)
    primary.kill()
    fault.began = time.time()
    await asyncio.sleep(scene.silence)
    primary.start()
    await repaired(scene, fault)


def freezing(*, primary: bool, standbys: int) -> Act:
    """Return a fault that freezes these members' machines until others have replaced them."""

    async def act(scene: HaScene, fault: Fault) -> None:
        members = await some_members(scene, primary=primary, standbys=standbys)
        for member in members:
            member.freeze()
        fault.began = time.time()
        await asyncio.sleep(scene.silence)
        for member in members:
            member.thaw()
        await repaired(scene, fault)

    return act


async def restart_in_turn(scene: HaScene, fault: Fault) -> None:
    """Restart all machines in turn, each once the one before it is back."""
    for member in scene.databases.members:
        await asyncio.to_thread(member.stop)
        member.start()
        await repaired(scene, fault)


async def standby_comes_back_empty(scene: HaScene, fault: Fault) -> None:
    """Replace a standby's disk: Patroni copies the primary's data."""
    (standby,) = await some_members(scene, primary=False, standbys=1)
    standby.kill()
    standby.wipe()
    standby.start()
    await repaired(scene, fault)


async def lose_primary_ahead_of_standbys(scene: HaScene, fault: Fault) -> None:
    """Stop the replication to both standbys for a while, and then lose the primary with its disk."""
    primary, *standbys = await some_members(scene, primary=True, standbys=2)
    receivers = [
        process for each in standbys for process in each.postgres() if "walreceiver" in "".join(process.cmdline()[:1])
    ]
    freeze(receivers)
    await asyncio.sleep(LAG)
    primary.kill()
    fault.began = time.time()
    primary.wipe()
    # The receivers' buffers hold what the primary has sent last, so they must not continue.
    kill(receivers)
    await asyncio.sleep(scene.hold)
    primary.start()
    await repaired(scene, fault)


async def some_members(scene: HaScene, *, primary: bool, standbys: int) -> list[Member]:
    """Return the primary, if it is wanted, and then so many standbys."""
    current = await scene.databases.primary()
    others = [member for member in scene.databases.members if member is not current]
    return [*([current] if primary else []), *others[:standbys]]
