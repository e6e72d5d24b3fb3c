"""Write results in batches: one transaction for the results of several messages."""

import asyncio
import logging
import time
from collections.abc import Sequence
from enum import Enum, auto
from functools import partial

from notify_common.contracts import topology
from notify_common.contracts.messages import DeliveryResult, DeliveryResults
from notify_common.rabbitmq.dead_letters import bury
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher, Failed
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.errors import ROW_ERRORS, DatabaseUnavailable, StatementTimedOut

from notify_status_writer.delivery_state import Refusal, Reported
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import Applied, ResultStore

log = logging.getLogger(__name__)

MESSAGES_PER_TRANSACTION = 20  # each message has up to 200 results
FIRST_PAUSE, LONGEST_PAUSE = 0.0625, 2.0  # seconds before results that wait are tried again
# A few bad pages do not cause so many failures in a row. If something else does, there is a pause each time this number
# is reached.
FAILURES_PER_PAUSE = 1_000
FAILURES = (*ROW_ERRORS, StatementTimedOut)  # without one of the results, or with fewer, a batch may succeed
# Results are dead-lettered slowly, because the archive is bounded: at this rate, it takes a day to fill.
DEAD_LETTER_INTERVAL = 1.0  # seconds per result


class Locked(Enum):
    """The outcome of a result whose delivery another transaction has locked."""

    LOCKED = auto()


LOCKED = Locked.LOCKED


class ResultWriter:
    """Writes results in batches and publishes the status changes."""

    def __init__(
        self,
        publisher: ConfirmedPublisher,
        store: ResultStore,
        events: EventPublisher,
        metrics: StatusWriterMetrics,
        tracing: Tracing = UNTRACED,
    ) -> None:
        self._publisher = publisher
        self._store = store
        self._events = events
        self._metrics = metrics
        self._tracing = tracing
        self._changes = 0  # transactions that have changed a delivery
        self._failures = 0  # failed transactions since the last of these
        self._next_dead_letter = 0.0
        self._batcher = self._create_batcher("results cannot be written", whole_submissions=True)
        # A message that fails is bisected apart from all others, which would otherwise wait for thousands of failing
        # transactions, again and again.
        self._isolator = self._create_batcher("results that have failed cannot be written", whole_submissions=False)

    def _create_batcher(self, outage: str, *, whole_submissions: bool) -> Batcher[Reported, Refusal | Locked | None]:
        return Batcher(
            partial(self._flush, Outage(log, outage)),
            max_batch=MESSAGES_PER_TRANSACTION,
            interval_after=interval_after,
            # `apply` is one transaction, so a flush that fails has written nothing, whatever its error. The batch is
            # bisected to find what fails, because it would otherwise take thousands of other results with it.
            rejections=(Exception,),
            whole_submissions=whole_submissions,
            observe=self._metrics.observe_results_batch,
        )

    async def write(self, results: Sequence[DeliveryResult], *, queue: str) -> None:
        """Return once every result is committed, or dead-lettered if it can never be; the results are from `queue`."""
        channel = topology.channel_of(queue)
        pause, changes_before, apart = FIRST_PAUSE, None, False
        while results:
            reports = [Reported(result, channel) for result in results]
            outcomes = await self._submit(reports, apart=apart)
            waiting: list[DeliveryResult] = []
            failed: list[DeliveryResult] = []
            reason = ""
            for result, outcome in zip(results, outcomes, strict=True):
                if outcome is LOCKED:
                    waiting.append(result)
                elif isinstance(outcome, Failed) and isinstance(outcome.error, StatementTimedOut):
                    waiting.append(result)  # for example, because its partition is locked
                    reason, apart = reason or str(outcome.error), True
                elif isinstance(outcome, Failed) and isinstance(outcome.error, ROW_ERRORS):
                    failed.append(result)
                    reason, apart = str(outcome.error), True
                elif outcome is not None:
                    await self._give_up(result, outcome, queue=queue)
            # Results are dead-lettered only after the longest pause, because a disk may fail for a moment.
            if failed and pause == LONGEST_PAUSE and self._may_dead_letter(failed, changes_before):
                await self._bury(*failed, reason=reason, queue=queue)
            elif failed:
                waiting += failed
                changes_before = self._changes if changes_before is None else changes_before
            results = waiting
            if results:
                await _wait(results, pause, reason)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _submit(self, reports: Sequence[Reported], *, apart: bool) -> Sequence[Refusal | Locked | Failed | None]:
        """Write the results of a message together with those of others, or `apart` from them if it fails."""
        if not apart:
            outcomes = await self._batcher.submit_all(reports)
            if not isinstance(outcomes[0], Failed):  # a message fails as a whole
                return outcomes
        return await self._isolator.submit_all(reports)

    async def _flush(self, outage: Outage, reports: Sequence[Reported]) -> Sequence[Refusal | Locked | None]:
        """Commit the results; return for each of them None, or why it has no effect."""
        with self._tracing.group("commit results", (result.traceparent for result, _ in reports)):
            applied = await self._apply(outage, reports)
        self._events.publish(applied.changes)
        outcomes = [
            LOCKED if result.delivery_id in applied.locked else refused
            for (result, _), refused in zip(reports, applied.refusals, strict=True)
        ]
        self._metrics.results.inc(len(reports) - outcomes.count(LOCKED))
        for change in applied.changes:
            self._metrics.changed(change)
        # The callers dead-letter refused results, so that no other result waits for that.
        return outcomes

    async def _apply(self, outage: Outage, reports: Sequence[Reported]) -> Applied:
        """Commit the results, however long an outage lasts; raise one of `FAILURES` if a result may be the cause."""
        try:
            # This retries until the results are committed, because giving up would dead-letter valid results.
            applied = await outage.retry(lambda: self._store.apply(reports), DatabaseUnavailable, unless=FAILURES)
        except FAILURES as failure:
            # The batch is bisected, to find the result that fails. If PostgreSQL is slow, a smaller one may be in time.
            self._failures += 1
            # Pauses are rare, because they also delay results that would not fail.
            if self._failures % FAILURES_PER_PAUSE == 0:
                await asyncio.sleep(outage.failed(failure))
            elif isinstance(failure, StatementTimedOut):
                outage.failed(failure)
            raise
        if applied.changes:
            self._changes += 1
            self._failures = 0
        return applied

    def _may_dead_letter(self, failed: Sequence[DeliveryResult], changes_before: int | None) -> bool:
        """Return whether to dead-letter results that failed again, although others have been written in the meantime.

        `changes_before` is `_changes` as of their message's first failure, or None if this is the first.
        """
        now = time.monotonic()
        if changes_before is None or self._changes == changes_before or now < self._next_dead_letter:
            return False
        self._next_dead_letter = now + DEAD_LETTER_INTERVAL * len(failed)
        return True

    async def _give_up(self, result: DeliveryResult, outcome: Failed | Refusal, *, queue: str) -> None:
        """Dead-letter a result that can never be applied."""
        if isinstance(outcome, Failed):
            about = {"delivery_id": str(result.delivery_id)}
            log.error("a result cannot be applied", extra=about, exc_info=outcome.error)
            reason = f"bug: {type(outcome.error).__name__}"
        else:
            self._metrics.refused[queue, outcome].inc()
            reason = outcome.value
        await self._bury(result, reason=reason, queue=queue)

    async def _bury(self, *results: DeliveryResult, reason: str, queue: str) -> None:
        """Publish the results as one dead letter, and return once that is confirmed."""
        log.error("dead-lettering results", extra={"reason": reason, "queue": queue, "results": len(results)})
        # The dead letter is a complete message, which can be requeued unchanged once the cause is fixed.
        body = DeliveryResults(results=results).model_dump_json().encode()
        await bury(self._publisher, body, queue=queue, reason=reason)


async def _wait(results: Sequence[DeliveryResult], pause: float, reason: str) -> None:
    if pause == LONGEST_PAUSE / 2:
        about = {"delivery_id": str(results[0].delivery_id), "results": len(results), "reason": reason or "locked"}
        log.warning("results wait, because their deliveries cannot be updated", extra=about)
    await asyncio.sleep(pause)
