"""A state machine that runs the real SQL statements for one delivery, which no order of steps may lose.

Steps also run at the same time: a third session holds a lock while two steps begin, and then lets them continue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryResult, DeliveryStatus
from notify_common.rabbitmq.connection import create_broker
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.clock import utc_now
from notify_common.sending.attempt import ProviderResponse, decide, expired
from notify_common.sending.errors import PermanentFailure, ProviderFailure, TemporaryFailure, Throttled
from notify_common.sending.retry_schedule import RetrySchedule
from notify_database.engine import PostgresSettings, create_engine
from notify_gateway.database import TenantShare
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.stranded import StrandedDeliveries
from notify_gateway.legacy.schemas import LegacyNotificationRequest
from notify_gateway.notifications.cancel import NotificationCanceller
from notify_gateway.notifications.intake import NotificationIntake
from notify_gateway.notifications.new_notification import new_notification
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import Held, OutboxStore
from notify_status_writer.delivery_state import Refusal, Reported
from notify_status_writer.result_store import ResultStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import blocked_or_done
from support.gateway import all_channels_idle
from support.services import NOWHERE, gateway_metrics
from typing_extensions import override

SCHEDULE = RetrySchedule(first_delay=timedelta(milliseconds=10), max_attempts=3)
TABLES = ("notifications", "deliveries", "attempts", "outbox")
EMPTY = [text(f"DELETE FROM {table}") for table in TABLES]  # noqa: S608 - constants
EXPIRE_LEASES = text("UPDATE outbox SET leased_until = now() - interval '1 second'")
EXPIRE_NOTIFICATION = text("UPDATE notifications SET expires_at = now()")
STATE = text("""
    SELECT d.status, d.round, d.attempt, d.failures, (SELECT count(*) FROM outbox) AS outbox,
           -- A relay takes only rows of the current round, and only those of pending deliveries.
           d.status = 'pending' AND EXISTS (SELECT FROM outbox WHERE outbox.round = d.round) AS queued,
           (SELECT array_agg(a.attempt ORDER BY a.attempt) FROM attempts a) AS attempts,
           (SELECT array_agg(a.attempt) FILTER (WHERE a.outcome = 'sent') FROM attempts a) AS sent
    FROM deliveries d
""")
PROVIDER_OUTCOMES: list[ProviderFailure | None] = [
    None, TemporaryFailure("busy"), *[PermanentFailure("blocked")] * 2,
    Throttled("slower", retry_after=timedelta(seconds=1)),
]  # fmt: skip
# A session can hold a row, or all other sessions' commits, because each changed row waits for this advisory lock.
HOLDS = {
    "outbox": text("SELECT FROM outbox FOR UPDATE"),
    "delivery": text("SELECT FROM deliveries FOR NO KEY UPDATE"),
    "commit": text("SELECT pg_advisory_xact_lock(1)"),
}
CREATE_WAIT = """
    CREATE FUNCTION wait_to_commit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$
"""
WAIT_TO_COMMIT = """
    CREATE CONSTRAINT TRIGGER wait_to_commit AFTER INSERT OR UPDATE OR DELETE ON {table} DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait_to_commit()
"""
SESSIONS = 4  # the one that holds a lock, two steps, and the one that waits until the steps are blocked
Result = TypeVar("Result")
Step = Callable[[], Awaitable[object]]


class DeliveryLife(RuleBasedStateMachine):
    """A delivery in a real PostgreSQL, with lists in place of the queues of RabbitMQ."""

    runner: asyncio.Runner
    engine: AsyncEngine

    def __init__(self) -> None:
        super().__init__()
        self._engine = self.engine
        self._outbox, self._store = OutboxStore(self._engine), ResultStore(self._engine)
        self._held: list[Held] = []  # leased by a relay
        self._confirmed: list[Held] = []  # published by a relay that has not deleted the rows yet
        self._requests: list[DeliveryRequested] = []  # messages for a sender
        self._results: list[DeliveryResult] = []  # messages for the status writer
        self._messages_lost = False
        self._was_sent, self._status = False, "pending"
        self._highest = (1, 0)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    async def _execute(self, *statements: Any) -> None:
        async with self._engine.begin() as connection:
            for statement in statements:
                await connection.execute(statement)

    async def _state(self) -> Any:
        async with self._engine.connect() as connection:
            return (await connection.execute(STATE)).one()

    @initialize(failed=st.booleans())
    def accept(self, *, failed: bool) -> None:
        """Accept the delivery. Half of all lives begin when it has failed and its row is still in the outbox."""

        async def work() -> None:
            await self._execute(*EMPTY)
            # RabbitMQ is unavailable, so the row stays in the outbox.
            broker, events = create_broker(NOWHERE, "gateway"), EventPublisher(NOWHERE, "gateway")
            relay = OutboxRelay(broker, ConfirmedPublisher, self._outbox, events, gateway_metrics())
            notification = new_notification(
                LegacyNotificationRequest(user_id=1, message="x", type=Channel.EMAIL), tenant="default"
            )
            await NotificationIntake(self._engine, relay, max_waiting=1, metrics=gateway_metrics()).accept(notification)
            self._delivery_id = notification.deliveries[0].delivery_id
            self._notification_id = notification.id
            if failed:
                now = utc_now()
                [held] = (await self._outbox.take_due(10)).held
                await self._outbox.release([held])
                response = ProviderResponse(now, now, failure=PermanentFailure("blocked"))
                await self._apply([decide(held.request, response, SCHEDULE).result])

        self._run(work())

    async def _apply(self, results: Sequence[DeliveryResult]) -> None:
        applied = await self._store.apply([Reported(result, Channel.EMAIL) for result in results])
        assert not any(isinstance(outcome, Refusal) for outcome in applied.outcomes)

    async def _take_due(self) -> None:
        self._held += (await self._outbox.take_due(10)).held

    async def _renew(self, held: Held) -> None:
        renewed = held.lease.next_lease()
        if await self._outbox.renew([Held(held.request, held.lease.with_pending(renewed))]):
            self._held = [Held(each.request, renewed) if each is held else each for each in self._held]

    async def _cancel(self) -> None:
        canceller = NotificationCanceller(self._engine, TenantShare(1), lambda _: None)
        await canceller.cancel("default", self._notification_id)

    async def _retry(self) -> None:
        await DeliveryRetries(self._engine).retry("default", self._delivery_id)

    async def _repair(self) -> None:
        stranded = StrandedDeliveries(
            self._engine, lambda _: None, lambda _: None, all_channels_idle, silence=timedelta()
        )
        await stranded.repair_chunk()

    def _possible_steps(self, data: st.DataObject) -> Mapping[str, Step]:
        """Return the steps that may run at the same time, all of which may be repeated."""
        steps: dict[str, Step] = {"take due": self._take_due, "cancel": self._cancel}
        if self._status == "failed":
            steps["retry"] = self._retry
        elif not DeliveryStatus(self._status).final:
            steps["repair"] = self._repair
        if self._held:
            held = self._held[-1]
            steps["renew"] = lambda: self._renew(held)
        if self._confirmed:
            confirmed = self._confirmed[-1]
            steps["delete"] = lambda: self._outbox.delete([confirmed])
        if self._results:
            applied = data.draw(st.lists(st.sampled_from(self._results), min_size=1, max_size=4))
            steps["apply results"] = lambda: self._apply(applied)
        return steps

    @precondition(lambda self: self._status not in {"sent", "cancelled", "expired"})
    @rule(hold=st.sampled_from(list(HOLDS)), data=st.data())
    def two_steps_interleave(self, *, hold: str, data: st.DataObject) -> None:
        """Begin two steps while another session holds a lock; each continues until it is blocked, or to its end."""
        steps = self._possible_steps(data)
        names = data.draw(st.lists(st.sampled_from(list(steps)), min_size=2, max_size=2, unique=True))
        if "retry" in steps and "retry" not in names:
            names[0] = "retry"  # races with a retry are the likeliest to strand a delivery
        self._run(self._interleave(hold, *(steps[name] for name in names)))

    async def _interleave(self, hold: str, *steps: Step) -> None:
        tasks: list[asyncio.Future[object]] = []
        async with self._engine.begin() as holding:
            await holding.execute(HOLDS[hold])
            for step in steps:
                tasks.append(asyncio.ensure_future(step()))
                await blocked_or_done(self._engine, *tasks)
        await asyncio.gather(*tasks)

    @rule()
    def relay_takes_due_rows(self) -> None:
        self._run(self._take_due())

    @precondition(lambda self: self._held)
    @rule(confirmed=st.booleans())
    def relay_publishes(self, *, confirmed: bool) -> None:
        """Publish a request. If its confirm is lost, the relay releases the row, although RabbitMQ has the request."""
        held = self._held.pop()
        self._requests.append(held.request)
        if confirmed:
            self._confirmed.append(held)
        else:
            self._run(self._outbox.release([held]))

    @precondition(lambda self: self._confirmed)
    @rule()
    def relay_deletes_a_confirmed_row(self) -> None:
        """Delete a confirmed row, possibly long after the confirm if PostgreSQL was unavailable."""
        self._run(self._outbox.delete([self._confirmed.pop()]))

    @precondition(lambda self: self._held or self._confirmed)
    @rule()
    def relay_dies_and_its_leases_expire(self) -> None:
        self._held.clear()
        self._confirmed.clear()
        self._run(self._execute(EXPIRE_LEASES))

    @precondition(lambda self: self._requests)
    @rule(
        outcome=st.sampled_from([*PROVIDER_OUTCOMES, "expired"]),
        acked=st.sampled_from([True, True, True, False]),
        data=st.data(),
    )
    def sender_handles_a_message(
        self, *, outcome: ProviderFailure | str | None, acked: bool, data: st.DataObject
    ) -> None:
        """Handle a message. It is redelivered if the sender dies after it publishes the result but before it acks."""
        request = data.draw(st.sampled_from(self._requests))
        if acked:
            self._requests.remove(request)
        now = utc_now()
        if isinstance(outcome, str):
            self._results.append(expired(request, now))
            return
        decision = decide(request, ProviderResponse(now, now, failure=outcome), SCHEDULE)
        self._results.append(decision.result)
        if decision.next_request is not None:
            self._requests.append(decision.next_request)

    @precondition(lambda self: self._results)
    @rule(acked=st.sampled_from([True, True, True, False]), data=st.data())
    def status_writer_applies_results(self, *, acked: bool, data: st.DataObject) -> None:
        applied = data.draw(st.lists(st.sampled_from(self._results), min_size=1, max_size=4))
        self._run(self._apply(applied))
        if acked:
            self._results = [result for result in self._results if result not in applied]

    @rule(event=st.sampled_from(["nothing", "nothing", "nothing", "cancel", "expire"]))
    def client_cancels_or_notification_expires(self, event: str) -> None:
        if event == "cancel":
            self._run(self._cancel())
        elif event == "expire":
            self._run(self._execute(EXPIRE_NOTIFICATION))

    @precondition(lambda self: self._status == "failed")
    @rule()
    def operator_retries(self) -> None:
        self._run(self._retry())

    @precondition(lambda self: not DeliveryStatus(self._status).final)
    @rule(repaired=st.sampled_from([False, False, False, True]))
    def gateway_repairs_stranded_deliveries(self, *, repaired: bool) -> None:
        """Repair the delivery as if nothing had been heard of it for long, although its message may still arrive."""
        if repaired:
            self._run(self._repair())

    @precondition(lambda self: self._requests or self._results)
    @rule(lost=st.sampled_from([False, False, False, True]))
    def rabbitmq_loses_its_messages(self, *, lost: bool) -> None:
        if lost:
            self._requests.clear()
            self._results.clear()
            self._messages_lost = True

    @invariant()
    def delivery_is_never_lost_and_never_moves_backwards(self) -> None:
        state = self._run(self._state())
        final = DeliveryStatus(state.status).final
        rounds = {request.round for request in self._requests} | {result.round for result in self._results}
        assert final or state.queued or state.round in rounds or self._messages_lost, (
            "nothing will ever move the delivery"
        )
        # Attempt numbers have no gaps, except for results that have not been written yet. An expiry may overtake the
        # result of the preceding attempt: it has that attempt's number, but adds no row.
        attempts = {max(state.attempts or [0]), *(result.attempt for result in self._results)}
        assert state.attempt in attempts or self._messages_lost
        # A sent result wins whenever it arrives, and the status stays sent.
        assert (state.status == "sent") == bool(state.sent)
        assert not self._was_sent or state.status == "sent"
        assert (state.round, state.attempt) >= self._highest
        self._status = state.status
        self._was_sent, self._highest = state.status == "sent", (state.round, state.attempt)

    @override
    def teardown(self) -> None:
        """Check that the delivery becomes final if nothing fails from now on."""

        async def finish() -> None:
            if not hasattr(self, "_delivery_id"):
                return
            for _ in range(3):
                await self._execute(EXPIRE_LEASES)
                if self._messages_lost:
                    await self._repair()
                due = (await self._outbox.take_due(10)).held
                await self._outbox.delete(due)
                requests, self._requests = [*self._requests, *(each.request for each in due)], []
                now = utc_now()
                self._results += [decide(each, ProviderResponse(now, now), SCHEDULE).result for each in requests]
                results, self._results = self._results, []
                if results:
                    await self._apply(results)
            state = await self._state()
            assert DeliveryStatus(state.status).final
            assert state.outbox == 0
            assert (state.attempts or []) == list(range(1, state.attempt + 1)) or self._messages_lost

        self._run(finish())


def run_on(postgres: PostgresSettings) -> None:
    """Run the state machine; its examples share the connections, because new ones would take most of the time."""
    with asyncio.Runner() as runner:
        engine = create_engine(postgres, pool_size=SESSIONS)

        async def create_triggers() -> None:
            async with engine.begin() as connection:
                await connection.execute(text(CREATE_WAIT))
                for table in ("deliveries", "outbox"):
                    await connection.execute(text(WAIT_TO_COMMIT.format(table=table)))

        runner.run(create_triggers())
        machine = type("OnThisDatabase", (DeliveryLife,), {"runner": runner, "engine": engine})
        machine_settings = settings(
            max_examples=60, stateful_step_count=40, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        run_state_machine_as_test(machine, settings=machine_settings)
        runner.run(engine.dispose())


@pytest.mark.timeout(300)
async def test_delivery_is_never_lost_whatever_the_order_of_steps(postgres: PostgresSettings) -> None:
    # The state machine runs its own event loop, so it needs a separate thread.
    await asyncio.to_thread(run_on, postgres)
