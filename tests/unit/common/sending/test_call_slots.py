import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from notify_common.sending.call_slots import CallSlots, Quota

HOST, OTHER_HOST, TENANT = Quota("host", 1), Quota("other host", 1), Quota("tenant", 2)


@asynccontextmanager
async def slot(slots: CallSlots, *quotas: Quota) -> AsyncIterator[None]:
    acquired_at = await slots.acquire(quotas)
    try:
        yield
    finally:
        slots.release(quotas, acquired_at)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_calls_get_their_slots_in_order_of_arrival() -> None:
    slots, order = CallSlots(), list[int]()

    async def call(number: int) -> None:
        async with slot(slots, HOST):
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(call(number) for number in range(10)))
    assert order == list(range(10))


async def test_call_that_waits_for_its_host_holds_no_slot_of_its_tenant() -> None:
    slots = CallSlots()
    async with slot(slots, HOST, TENANT):
        waiting = [asyncio.create_task(slots.acquire((HOST, TENANT))) for _ in range(5)]
        await settle()
        async with asyncio.timeout(1), slot(slots, OTHER_HOST, TENANT):
            assert not any(task.done() for task in waiting)
    await settle()
    assert [task.done() for task in waiting] == [True, False, False, False, False]
    for task in waiting:
        task.cancel()


async def test_call_that_waits_for_its_tenant_holds_no_slot_of_its_host() -> None:
    slots, others = CallSlots(), Quota("others", 10)
    async with slot(slots, OTHER_HOST, TENANT), slot(slots, Quota("third host", 1), TENANT):
        waiting = asyncio.create_task(slots.acquire((HOST, TENANT)))
        await settle()
        async with asyncio.timeout(1), slot(slots, HOST, others):
            assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


async def test_slot_of_a_cancelled_call_goes_to_the_next() -> None:
    slots = CallSlots()
    acquired_at = await slots.acquire((HOST,))
    first, second = [asyncio.create_task(slots.acquire((HOST,))) for _ in range(2)]
    await settle()
    slots.release((HOST,), acquired_at)
    first.cancel()  # it has been woken, but has not run since
    await asyncio.wait_for(second, 1)
    assert first.cancelled()


@pytest.mark.parametrize("seed", range(20))
async def test_no_quota_is_exceeded_and_no_call_waits_forever(seed: int) -> None:
    chance, slots, used = random.Random(seed), CallSlots(), Counter[str]()
    hosts = [Quota(f"host {number}", chance.randint(1, 3)) for number in range(6)]
    tenants = [Quota(f"tenant {number}", chance.randint(1, 5)) for number in range(3)]

    async def call() -> None:
        quotas = (chance.choice(hosts), chance.choice(tenants))
        timeout = 0 if chance.random() < 0.2 else None
        try:
            async with asyncio.timeout(timeout), slot(slots, *quotas):
                for quota in quotas:
                    used[quota.name] += 1
                    assert used[quota.name] <= quota.calls
                try:
                    await asyncio.sleep(0)
                finally:
                    used.subtract(quota.name for quota in quotas)
        except TimeoutError:
            pass

    async with asyncio.timeout(10):
        await asyncio.gather(*(call() for _ in range(300)))
    # Nothing is left behind.
    left = {name: value for name, value in vars(slots).items() if name != "_return_times"}
    assert left == {"_used": Counter(), "_waiting": {}, "_waiting_calls": Counter()}
