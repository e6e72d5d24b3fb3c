import asyncio

import pytest
from notify_common.sending import process_pauses
from notify_common.sending.process_pauses import ProcessPauses

HEARTBEAT = 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(process_pauses, "CHECK_INTERVAL", 0.0)
    monkeypatch.setattr(process_pauses, "HOLD", 0.01)
    return Clock()


async def run_loop() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_calls_are_held_back_for_a_moment_after_a_pause(clock: Clock) -> None:
    pauses = ProcessPauses(HEARTBEAT, clock)
    async with pauses.watching():
        await run_loop()
        assert pauses.over.is_set()
        clock.now += HEARTBEAT + 1
        await run_loop()
        assert not pauses.over.is_set()
        await pauses.over.wait()


async def test_short_delays_hold_back_nothing(clock: Clock) -> None:
    pauses = ProcessPauses(HEARTBEAT, clock)
    async with pauses.watching():
        for _ in range(5):
            clock.now += HEARTBEAT - 1
            await run_loop()
            assert pauses.over.is_set()
