"""The faults of a chaos run, by name."""

import asyncio
import time
from collections.abc import Sequence

from notify_local.stack import SENDERS

from chaos.clock_faults import SHIFT, skewing
from chaos.process_faults import kill_several, killing, pausing, terminate_one
from chaos.queue_faults import fill_queue, stop_queue, unbind_queue
from chaos.request_faults import post_large_bodies, race_retries_with_cancels, read_slowly
from chaos.scene import Act, Fault, Scene
from chaos.server_faults import close_connections, kill_both, lock_all_tables, raise_memory_alarm, stop_postgres

MAIL_SERVER_DOWN = "mail server down"
LARGE_BODIES = "memory alarm, 64 KiB bodies"
QUEUE_STOPPED = "a queue without a majority"


def _misbehaving(mode: str) -> Act:
    async def act(scene: Scene, _: Fault) -> None:
        file = scene.simulator_folder / "mode"
        file.write_text(mode)
        await asyncio.sleep(scene.hold if mode == "hang" else scene.outage)
        file.unlink()

    return act


async def _mail_server_down(scene: Scene, _: Fault) -> None:
    assert scene.mail_server is not None
    await scene.mail_server.down(scene.outage)


# These last longer than a short run.
PAUSES: dict[str, Act] = {
    "pause a gateway": pausing("gateway"),
    "pause a sender": pausing(*SENDERS),
    "pause a status_writer": pausing("status_writer"),
}
FAULTS: dict[str, Act] = {
    "kill -9 one gateway": killing("gateway"),
    "kill -9 every gateway": killing("gateway", "gateway-2"),
    "kill -9 every status_writer": killing("status_writer", "status_writer-2"),
    **{f"kill -9 one {sender}": killing(sender) for sender in SENDERS},
    "kill -9 every telegram_sender": killing("telegram_sender", "telegram_sender-2"),
    "kill -9 several services": kill_several,
    "SIGTERM a service": terminate_one,
    "kill -9 RabbitMQ": killing("rabbitmq"),
    "close connections": close_connections,
    "PostgreSQL immediate stop": stop_postgres,
    "RabbitMQ and PostgreSQL down": kill_both,
    "memory alarm": raise_memory_alarm,
    LARGE_BODIES: post_large_bodies,
    "tables locked": lock_all_tables,
    "slow reads": read_slowly,
    "retry races with cancel": race_retries_with_cancels,
    "a full queue": fill_queue,
    "an unbound queue": unbind_queue,
    QUEUE_STOPPED: stop_queue,
    "a gateway with a fast clock": skewing(SHIFT),
    "a gateway with a slow clock": skewing(-SHIFT),
    "provider hangs": _misbehaving("hang"),
    "provider fails": _misbehaving("fail"),
    MAIL_SERVER_DOWN: _mail_server_down,
    **PAUSES,
}
CUT_ALL = frozenset({"kill -9 RabbitMQ", "close connections", "RabbitMQ and PostgreSQL down"})


def fault_names(*, smtp: bool, pauses: bool) -> list[str]:
    """Return the names of all faults; `smtp` includes those of a mail server, and `pauses` the long ones."""
    return [name for name in FAULTS if (smtp or name != MAIL_SERVER_DOWN) and (pauses or name not in PAUSES)]


def series(scene: Scene, names: Sequence[str], count: int) -> list[str]:
    """Return `count` of these names in random order; none is repeated before all the others have occurred."""
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += scene.rng.sample(sorted(names), len(names))
    return chosen[:count]


async def inject(scene: Scene, name: str) -> Fault:
    """Inject a fault, and return when it is over; killed processes may still be restarting."""
    fault = Fault(name, time.time(), name in CUT_ALL)
    await FAULTS[name](scene, fault)
    fault.ended = time.time()
    return fault
