import asyncio

import pytest
from aio_pika.exceptions import AMQPConnectionError, ChannelInvalidStateError
from notify_common.errors import BrokerUnavailable
from notify_common.rabbitmq.connection import broker_errors


@pytest.mark.parametrize(
    "error",
    [
        AMQPConnectionError("gone"),
        ChannelInvalidStateError("closed"),
        ConnectionResetError(),
        TimeoutError(),
        RuntimeError("closed"),  # aiormq raises this for some lost connections
        Exception(),
        StopAsyncIteration(),  # aiormq raises this if a connection is closed at once
        asyncio.CancelledError(),  # aiormq cancels tasks that wait for a lost connection
    ],
    ids=repr,
)
async def test_lost_connection_errors_become_broker_unavailable(error: BaseException) -> None:
    with pytest.raises(BrokerUnavailable), broker_errors():
        raise error


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError(), KeyError()], ids=repr)
def test_programming_errors_are_not_converted(error: Exception) -> None:
    with pytest.raises(type(error)), broker_errors():
        raise error


async def test_task_cancellation_propagates() -> None:
    async def wait() -> None:
        with broker_errors():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
