"""Write results in batches: one transaction for the results of several messages."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from notify_common.contracts import topology
from notify_common.contracts.messages import DeliveryResult
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.errors import ROW_ERRORS, DatabaseUnavailable, StatementTimedOut

from notify_status_writer.delivery_state import Refusal, Reported
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import LOCKED_ELSEWHERE, WRITTEN, Applied, ResultStore, WriteOutcome
from notify_status_writer.unwritten_results import ResultBatcher, UnwrittenResults

log = logging.getLogger(__name__)

MESSAGES_PER_TRANSACTION = 20  # each message has up to 200 results
# There is a pause whenever this many more transactions have failed since the last one with status changes. Successful
# ones without status changes do not matter, because they may have written nothing. A few bad pages do not cause so many
# failures, so the cause probably affects all results.
FAILURES_PER_PAUSE = 1_000
FAILURES = (*ROW_ERRORS, StatementTimedOut)  # after one of these, a smaller batch may succeed


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
        self._store = store
        self._events = events
        self._metrics = metrics
        self._tracing = tracing
        self._changes = 0  # transactions with status changes
        self._failures = 0  # failed transactions since the last of these
        self._batcher = self._create_batcher("results cannot be written", whole_submissions=True)
        # Both batchers bisect a batch that fails. The first one isolates whole messages, and only those that fail go on
        # to the isolator, which isolates single results. All other messages would otherwise wait for thousands of
        # failing transactions, again and again.
        isolator = self._create_batcher("results that have failed cannot be written", whole_submissions=False)
        self._unwritten = UnwrittenResults(publisher, metrics, self._batcher, isolator, lambda: self._changes)

    def _create_batcher(self, outage: str, *, whole_submissions: bool) -> ResultBatcher:
        return Batcher(
            partial(self._flush, Outage(log, outage)),
            max_batch=MESSAGES_PER_TRANSACTION,
            interval_after=interval_after,
            # A batch is bisected after any error, because thousands of other results would otherwise fail with it. It
            # has not been written, because `apply` is one transaction. Only a bug can raise an error after the commit;
            # the results are then written again, which changes nothing, but their status changes may be lost.
            rejections=(Exception,),
            whole_submissions=whole_submissions,
            observe=self._metrics.observe_results_batch,
        )

    async def write(self, results: Sequence[DeliveryResult], *, queue: str) -> None:
        """Return once every result is committed, or dead-lettered if it can never be; the results are from `queue`."""
        channel = topology.channel_of(queue)
        reports = [Reported(result, channel) for result in results]
        outcomes = await self._batcher.submit_all(reports)
        if any(outcome is not WRITTEN for outcome in outcomes):
            await self._unwritten.write_or_dead_letter(reports, outcomes, queue=queue)

    async def _flush(self, outage: Outage, reports: Sequence[Reported]) -> Sequence[WriteOutcome | Refusal]:
        """Commit the results, publish the status changes, and return the outcome of each result."""
        with self._tracing.group("commit results", (result.traceparent for result, _ in reports)):
            applied = await self._apply(outage, reports)
        self._events.publish(applied.changes)
        self._metrics.results.inc(len(reports) - applied.outcomes.count(LOCKED_ELSEWHERE))
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
            # The batch is bisected, to find what fails. If PostgreSQL is slow, half of it may be in time.
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
