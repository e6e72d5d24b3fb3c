"""Faults of the service processes: killed, stopped and paused."""

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from support.processes import System

from chaos.scene import PAUSE, PROGRAMS, Act, Fault, Scene


def killing(*programs: str) -> Act:
    """Return a fault that kills programs; their supervisor restarts them."""

    async def act(scene: Scene, fault: Fault) -> None:
        fault.killed |= signalled(scene.system, programs, signal.SIGKILL)

    return act


async def kill_several(scene: Scene, fault: Fault) -> None:
    """Kill three random processes."""
    fault.killed |= signalled(scene.system, scene.rng.sample(PROGRAMS, 3), signal.SIGKILL)


async def terminate_one(scene: Scene, _: Fault) -> None:
    """Stop a random process with SIGTERM."""
    signalled(scene.system, [scene.rng.choice(PROGRAMS)], signal.SIGTERM)


def pausing(*services: str) -> Act:
    """Return a fault that pauses one process of a random service until its leases and connections have ended."""

    async def act(scene: Scene, fault: Fault) -> None:
        service, number = scene.rng.choice(services), scene.rng.randrange(2)
        with ExitStack() as stack:
            if service == "gateway":
                # A load balancer stops sending requests to a gateway that does not respond.
                stack.enter_context(scene.load.avoiding(number))
            with paused(scene.system, [f"{service}-2" if number else service]) as processes:
                fault.paused |= processes
                await asyncio.sleep(PAUSE)

    return act


@contextmanager
def paused(system: System, programs: Iterable[str]) -> Iterator[dict[int, str]]:
    """Pause programs until the context ends; yield their names by process id."""
    stopped = signalled(system, programs, signal.SIGSTOP)
    try:
        yield stopped
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def signalled(system: System, programs: Iterable[str], number: signal.Signals) -> dict[int, str]:
    """Send a signal to programs, and return the names of those that were running, by process id."""
    reached = {}
    for program in programs:
        # A program may still be down from the previous fault.
        with suppress(FileNotFoundError, ProcessLookupError):
            pid = system.pid(program)
            os.kill(pid, number)
            reached[pid] = program
    return reached
