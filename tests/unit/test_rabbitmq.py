import asyncio

import pytest
from aio_pika.exceptions import AMQPConnectionError, ChannelInvalidStateError
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors
from notify_common.rabbitmq.events import MAX_WAITING, EventPublisher


@pytest.mark.parametrize(
    "error",
    [
        AMQPConnectionError("gone"),
        ChannelInvalidStateError("closed"),
        ConnectionResetError(),
        TimeoutError(),
        RuntimeError("closed"),  # of aiormq, and of no class of its own
        Exception(),
        asyncio.CancelledError(),  # not meant for this task
    ],
    ids=repr,
)
async def test_whatever_a_lost_connection_raises_says_that_the_broker_is_away(error: BaseException) -> None:
    with pytest.raises(BrokerUnavailable), broker_errors():
        raise error


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError(), KeyError()], ids=repr)
def test_a_bug_stays_a_bug(error: Exception) -> None:
    with pytest.raises(type(error)), broker_errors():
        raise error


async def test_a_task_that_is_cancelled_stays_cancelled() -> None:
    async def wait() -> None:
        with broker_errors():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_events_that_nobody_takes_are_bounded() -> None:
    events = EventPublisher(RabbitSettings(), "test")
    change = object()
    for _ in range(3):
        events.publish([change] * (MAX_WAITING // 2))  # type: ignore[list-item]  # only counted here
    assert sum(len(group) for group in [events._waiting.get_nowait() for _ in range(2)]) == MAX_WAITING  # noqa: SLF001
    assert events._waiting.empty()  # noqa: SLF001
