"""Write results in batches: one transaction for the results of several messages."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from notify_common.contracts import topology
from notify_common.contracts.messages import DeliveryResult, DeliveryResults
from notify_common.rabbitmq.dead_letters import dead_letter
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher, Failed
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.errors import ROW_ERRORS, DatabaseUnavailable, StatementTimedOut

from notify_status_writer.delivery_state import Refusal, Reported
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import Applied, ResultStore, WriteOutcome

log = logging.getLogger(__name__)

MESSAGES_PER_TRANSACTION = 20  # each message has up to 200 results
FIRST_PAUSE, LONGEST_PAUSE = 0.0625, 2.0  # seconds before results that could not be written are tried again
# There is a pause whenever this many more transactions in a row have failed. A few bad pages do not cause so many
# failures, so the cause probably affects all results.
FAILURES_PER_PAUSE = 1_000
FAILURES = (*ROW_ERRORS, StatementTimedOut)  # after one of these, a smaller batch may succeed
# Results are dead-lettered slowly, because the archive is bounded: at this rate, it takes a day to fill.
DEAD_LETTER_INTERVAL = 1.0  # seconds per result


@dataclass(slots=True)
class Unwritten:
    """Results that are not written yet, but may be written later."""

    waiting: list[Reported]
    """Their rows are locked, or a statement took too long. They are never dead-lettered."""
    failing: list[Reported]
    """Each of them makes a statement fail. They are dead-lettered if they still do so while others are written."""
    error: Exception | None
    """The last error of `failing`, or else the first timeout."""


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
        # This batcher bisects messages that have failed, down to single results. All other messages would otherwise
        # wait for thousands of failing transactions, again and again.
        self._bisector = self._create_batcher("results that have failed cannot be written", whole_submissions=False)

    def _create_batcher(self, outage: str, *, whole_submissions: bool) -> Batcher[Reported, WriteOutcome | Refusal]:
        return Batcher(
            partial(self._flush, Outage(log, outage)),
            max_batch=MESSAGES_PER_TRANSACTION,
            interval_after=interval_after,
            # `apply` is one transaction, so a flush that fails has written nothing, whatever its error. The batch is
            # bisected to find out what fails, because thousands of other results would otherwise fail with it.
            rejections=(Exception,),
            whole_submissions=whole_submissions,
            observe=self._metrics.observe_results_batch,
        )

    async def write(self, results: Sequence[DeliveryResult], *, queue: str) -> None:
        """Return once every result is committed, or dead-lettered if it can never be; the results are from `queue`."""
        channel = topology.channel_of(queue)
        reports = [Reported(result, channel) for result in results]
        outcomes = await self._batcher.submit_all(reports)
        if any(outcome is not WriteOutcome.WRITTEN for outcome in outcomes):
            await self._write_what_is_left(reports, outcomes, queue=queue)

    async def _write_what_is_left(
        self, reports: Sequence[Reported], outcomes: Sequence[WriteOutcome | Refusal | Failed], *, queue: str
    ) -> None:
        """Try again until every result is written or dead-lettered; `outcomes` are those of the first try."""
        pause, changes_before, bisecting = FIRST_PAUSE, None, False
        while True:
            if not bisecting and isinstance(outcomes[0], Failed):  # a message fails as a whole
                outcomes = await self._bisector.submit_all(reports)
            left = await self._unwritten(reports, outcomes, queue=queue)
            bisecting = bisecting or left.error is not None
            # Results are dead-lettered only after the longest pause, because a disk may fail for a moment.
            if left.failing and pause == LONGEST_PAUSE and self._may_dead_letter(left.failing, changes_before):
                await self._dead_letter(*(each.result for each in left.failing), reason=str(left.error), queue=queue)
                reports = left.waiting
            else:
                reports = [*left.waiting, *left.failing]
                if left.failing and changes_before is None:
                    changes_before = self._changes
            if not reports:
                return
            await _pause(reports, pause, left.error)
            pause = min(2 * pause, LONGEST_PAUSE)
            outcomes = await (self._bisector if bisecting else self._batcher).submit_all(reports)

    async def _unwritten(
        self, reports: Sequence[Reported], outcomes: Sequence[WriteOutcome | Refusal | Failed], *, queue: str
    ) -> Unwritten:
        """Return the results that may be written later; dead-letter those that can never be."""
        left = Unwritten([], [], None)
        for report, outcome in zip(reports, outcomes, strict=True):
            error = outcome.error if isinstance(outcome, Failed) else None
            if outcome is WriteOutcome.LOCKED_ELSEWHERE:
                left.waiting.append(report)
            elif isinstance(error, StatementTimedOut):  # for example, because the result's partition is locked
                left.waiting.append(report)
                left.error = left.error or error
            elif isinstance(error, ROW_ERRORS):
                left.failing.append(report)
                left.error = error
            elif outcome is not WriteOutcome.WRITTEN:
                await self._give_up(report.result, outcome, queue=queue)
        return left

    async def _flush(self, outage: Outage, reports: Sequence[Reported]) -> Sequence[WriteOutcome | Refusal]:
        """Commit the results, publish the status changes, and return the outcome of each result."""
        with self._tracing.group("commit results", (result.traceparent for result, _ in reports)):
            applied = await self._apply(outage, reports)
        self._events.publish(applied.changes)
        self._metrics.results.inc(len(reports) - applied.outcomes.count(WriteOutcome.LOCKED_ELSEWHERE))
        for change in applied.changes:
            self._metrics.changed(change)
        # The callers dead-letter refused results, so that no other result waits for that.
        return applied.outcomes

    async def _apply(self, outage: Outage, reports: Sequence[Reported]) -> Applied:
        """Commit the results, however long an outage lasts; raise one of `FAILURES` if a result may be the cause."""
        try:
            # This retries until the results are committed, because giving up would dead-letter valid results.
            applied = await outage.retry(lambda: self._store.apply(reports), DatabaseUnavailable, unless=FAILURES)
        except FAILURES as failure:
            # The batch is bisected, to find the result that fails. If PostgreSQL is slow, half of it may be in time.
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

    def _may_dead_letter(self, failing: Sequence[Reported], changes_before: int | None) -> bool:
        """Return True if others have been written since results of this message first failed, unless it is too soon.

        `changes_before` is what `_changes` was at that first failure, or None if this is the first.
        """
        now = time.monotonic()
        if changes_before is None or self._changes == changes_before or now < self._next_dead_letter:
            return False
        self._next_dead_letter = now + DEAD_LETTER_INTERVAL * len(failing)
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
        await self._dead_letter(result, reason=reason, queue=queue)

    async def _dead_letter(self, *results: DeliveryResult, reason: str, queue: str) -> None:
        """Publish the results as one dead letter, and return once that is confirmed."""
        log.error("dead-lettering results", extra={"reason": reason, "queue": queue, "results": len(results)})
        # The dead letter is a complete message, which can be requeued unchanged once the cause is fixed.
        body = DeliveryResults(results=results).model_dump_json().encode()
        await dead_letter(self._publisher, body, queue=queue, reason=reason)


async def _pause(reports: Sequence[Reported], pause: float, error: Exception | None) -> None:
    if pause == LONGEST_PAUSE / 2:
        reason = "locked" if error is None else str(error)
        about = {"delivery_id": str(reports[0].result.delivery_id), "results": len(reports), "reason": reason}
        log.warning("results wait, because their deliveries cannot be updated", extra=about)
    await asyncio.sleep(pause)
