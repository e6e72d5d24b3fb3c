"""A provider that sends nothing. Its latency and error rate are configurable."""

import asyncio
import os
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from notify_common.contracts.messages import DeliveryRequested
from notify_common.contracts.simulated_recipients import Behaviour, simulated_behaviour
from notify_common.sending.errors import PermanentFailure, TemporaryFailure, Throttled
from notify_common.sending.provider import Provider

THROTTLED_FOR = timedelta(seconds=3)
TIMES_OUT_AFTER = 1.0  # seconds, in a simulated system


class Simulator:
    """Waits `latency` seconds, then fails with `error_probability` (0: never, 1: always).

    In tests of the whole system, each process records what it has sent in its own ledger file in `folder`. If the file
    `mode` in that folder contains `hang` or `fail`, all calls hang or fail.
    """

    def __init__(self, *, latency: float, error_probability: float, folder: Path | None = None) -> None:
        self._latency = latency
        self._error_probability = error_probability
        self._mode = folder / "mode" if folder else None
        self._ledger: TextIO | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._ledger = (folder / f"{os.getpid()}.ledger").open("a", buffering=1)

    async def send(self, request: DeliveryRequested) -> str:
        """Pretend to send."""
        await asyncio.sleep(self._latency)
        mode = self._mode.read_text() if self._mode is not None and self._mode.exists() else None
        if mode == "hang":
            await asyncio.Event().wait()
        if mode == "fail":
            raise TemporaryFailure("simulated_outage")
        if random.random() < self._error_probability:  # noqa: S311 - this is only a simulation
            raise TemporaryFailure("simulated_error")
        if self._ledger is not None:
            # The file is line-buffered, so this line survives if the process is killed immediately afterwards.
            self._ledger.write(f"{time.time():.3f} {request.delivery_id} {request.round} {request.attempt}\n")
        return f"simulated-{request.delivery_id}-{request.attempt}"

    async def aclose(self) -> None:
        """Do nothing, because there is no connection to close."""


def is_simulated(request: DeliveryRequested) -> bool:
    """Return True if the request never reaches the provider, so that the provider's limits do not apply to it."""
    return request.test or simulated_behaviour(request.recipient) is not None


class WithSimulation:
    """A provider that simulates test deliveries and test recipients, and passes all other requests on to `provider`.

    If `provider` is the simulator as well, the whole system is simulated, and timeouts take time.
    """

    def __init__(self, provider: Provider, simulator: Provider) -> None:
        self._provider = provider
        self._simulator = simulator
        # Simulated calls have no limits. Beside a real provider they must not wait, or many would delay real messages.
        self._times_out_after = TIMES_OUT_AFTER if provider is simulator else 0

    async def send(self, request: DeliveryRequested) -> str | None:
        """Simulate the behaviour that a test recipient names, or send to a real recipient."""
        match simulated_behaviour(request.test_recipient if request.test else request.recipient):
            case None:
                return await (self._simulator if request.test else self._provider).send(request)
            case Behaviour.PERMANENT:
                raise PermanentFailure("simulated_permanent")
            case Behaviour.TEMPORARY:
                raise TemporaryFailure("simulated_temporary")
            case Behaviour.TIMEOUT:
                await asyncio.sleep(self._times_out_after)
                raise TimeoutError
            case Behaviour.THROTTLED if request.waiting_since is None:
                raise Throttled("simulated_throttled", retry_after=THROTTLED_FOR)
        return f"simulated-{request.delivery_id}-{request.attempt}"

    async def aclose(self) -> None:
        """Close the provider."""
        await self._provider.aclose()
