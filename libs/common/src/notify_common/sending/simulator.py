"""A provider that sends nothing: it takes its time and fails as often as it is told."""

import asyncio
import random

from notify_common.messages import DeliveryRequested
from notify_common.sending.provider import TemporaryFailure


class Simulator:
    """Waits `latency` seconds, then fails with `error_probability` (0: never, 1: always)."""

    def __init__(self, *, latency: float, error_probability: float) -> None:
        self._latency = latency
        self._error_probability = error_probability

    async def send(self, request: DeliveryRequested) -> str:
        """Pretend to send."""
        await asyncio.sleep(self._latency)
        if random.random() < self._error_probability:  # noqa: S311 - a simulation, no secret
            raise TemporaryFailure("simulated_error")
        return f"simulated-{request.delivery_id}-{request.attempt}"
