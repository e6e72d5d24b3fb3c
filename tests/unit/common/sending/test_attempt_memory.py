"""A redelivered message joins its earlier attempt, whether that was made or postponed."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested
from notify_common.runtime.clock import utc_now
from notify_common.sending.attempt import Postponed
from notify_common.sending.attempt_memory import AttemptMemory, RememberedAttempt

KEEP = 2


class Postponing:
    """A memory of attempts that are all postponed by an hour."""

    def __init__(self) -> None:
        self.started: list[DeliveryRequested] = []
        self.memory = AttemptMemory(self._postpone, keep=KEEP)

    async def _postpone(self, request: DeliveryRequested) -> Postponed:
        self.started.append(request)
        return Postponed(request.model_copy(update={"not_before": utc_now() + timedelta(hours=1)}))


@pytest.fixture
async def postponing() -> Postponing:
    return Postponing()


def request() -> DeliveryRequested:
    content = Content(message="hello")
    return DeliveryRequested(
        delivery_id=uuid4(), notification_id=uuid4(), user_id=1, channel=Channel.TELEGRAM, content=content
    )


async def next_request(attempt: RememberedAttempt) -> DeliveryRequested:
    """Wait until the attempt is postponed, and return the request that follows it."""
    decision = await attempt.decision
    assert isinstance(decision, Postponed)
    return decision.next_request


async def publish(attempt: RememberedAttempt, *, confirmed: bool = True) -> None:
    """Publish the request that follows the attempt; RabbitMQ answers at once."""

    async def answer() -> bool:
        return confirmed

    await next_request(attempt)
    attempt.publishing = asyncio.create_task(answer())
    await attempt.publishing


async def begin_to_publish(attempt: RememberedAttempt) -> "asyncio.Future[bool]":
    """Publish the request that follows the attempt; RabbitMQ confirms it when the future is set."""
    confirm: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def answer() -> bool:
        return await confirm

    await next_request(attempt)
    attempt.publishing = asyncio.create_task(answer())
    return confirm


async def test_postponed_message_is_known_until_its_next_request_is_due(postponing: Postponing) -> None:
    memory, first = postponing.memory, request()
    with memory.join(first) as attempt:
        following = await next_request(attempt)
        await publish(attempt)
    assert memory.already_postponed(first)
    assert not memory.already_postponed(following)
    assert not memory.already_postponed(request())


async def test_message_redelivered_while_its_next_request_is_published_joins_that(postponing: Postponing) -> None:
    memory, first = postponing.memory, request()
    with memory.join(first) as attempt:  # its connection is lost before the next request is confirmed
        confirm = await begin_to_publish(attempt)
    with memory.join(first) as again:
        assert again is attempt
        assert again.publishing is not None
        confirm.set_result(True)
        assert await again.publishing
    assert len(postponing.started) == 1
    assert memory.already_postponed(first)


async def test_message_redelivered_after_its_next_request_was_confirmed_is_known(postponing: Postponing) -> None:
    memory, first = postponing.memory, request()
    with memory.join(first) as attempt:
        confirm = await begin_to_publish(attempt)
    confirm.set_result(True)
    assert attempt.publishing is not None
    forgotten = asyncio.Event()
    attempt.publishing.add_done_callback(lambda _: forgotten.set())  # it runs after the memory's own callback
    await forgotten.wait()
    assert memory.already_postponed(first)
    assert not memory.remembers(first)


async def test_message_whose_next_request_was_refused_is_attempted_again(postponing: Postponing) -> None:
    memory, first = postponing.memory, request()
    with memory.join(first) as attempt:
        await publish(attempt, confirmed=False)
    assert not memory.already_postponed(first)
    with memory.join(first) as again:
        await next_request(again)
    assert len(postponing.started) == 2


async def test_next_request_does_not_join_the_attempt_that_it_follows(postponing: Postponing) -> None:
    # A retry queue with a short delay may deliver the next request before the confirm for it has been read.
    memory, first = postponing.memory, request()
    with memory.join(first) as attempt:
        following = await next_request(attempt)
        assert not memory.remembers(following)
        with memory.join(following) as second:
            assert second is not attempt
            assert memory.remembers(following)
            await next_request(second)
    assert postponing.started == [first, following]


async def test_only_the_last_postponements_are_remembered(postponing: Postponing) -> None:
    memory, requests = postponing.memory, [request() for _ in range(KEEP + 1)]
    for each in requests:
        with memory.join(each) as attempt:
            await publish(attempt)
    assert [memory.already_postponed(each) for each in requests] == [False, True, True]


class Waiting:
    """A memory of attempts that wait until `admitted` is set before they make their calls."""

    def __init__(self) -> None:
        self.admitted = asyncio.Event()
        self.calls: list[DeliveryRequested] = []
        self.memory = AttemptMemory(self._attempt, keep=KEEP)

    async def _attempt(self, request: DeliveryRequested) -> Postponed:
        await self.admitted.wait()
        self.memory.mark_calling(request)
        self.calls.append(request)
        await asyncio.Event().wait()
        raise AssertionError


async def test_attempt_that_no_handler_waits_for_begins_no_call() -> None:
    waiting, first = Waiting(), request()
    with waiting.memory.join(first) as attempt, waiting.memory.join(first) as again:
        assert again is attempt
    assert not waiting.memory.remembers(first)
    waiting.admitted.set()
    await asyncio.wait({attempt.decision})
    assert attempt.decision.cancelled()
    assert waiting.calls == []


async def test_attempt_goes_on_while_one_handler_waits_for_it() -> None:
    waiting, first = Waiting(), request()
    with waiting.memory.join(first) as attempt:
        with waiting.memory.join(first):
            pass
        waiting.admitted.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.calls == [first]
    assert waiting.memory.remembers(first)  # its call has begun
    attempt.decision.cancel()
