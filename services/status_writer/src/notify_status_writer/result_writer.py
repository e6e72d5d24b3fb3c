"""Write results in batches: one transaction for the results of several messages."""

import asyncio
import logging
from collections.abc import Sequence
from enum import Enum, auto

from notify_common.contracts import topology
from notify_common.contracts.messages import DeliveryResult, DeliveryResults
from notify_common.rabbitmq.dead_letters import bury
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher, Failed
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import UNTRACED, Tracing
from notify_database.errors import DatabaseUnavailable, DataRejected

from notify_status_writer.delivery_state import Refusal, Reported
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import ResultStore

log = logging.getLogger(__name__)

MESSAGES_PER_TRANSACTION = 20  # each message has up to 200 results
FIRST_PAUSE, LONGEST_PAUSE = 0.0625, 2.0  # seconds before results of a locked delivery are tried again


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
        self._database_outage = Outage(log, "results cannot be written")
        self._batcher = Batcher(
            self._flush,
            max_batch=MESSAGES_PER_TRANSACTION,
            interval_after=interval_after,
            # `apply` is one transaction, so a flush that fails has written nothing, whatever its error. The batch is
            # bisected to find the results that fail, because they would otherwise take thousands of others with them.
            rejections=(Exception,),
            observe=metrics.observe_results_batch,
        )

    async def write(self, results: Sequence[DeliveryResult], *, queue: str) -> None:
        """Return once every result is committed, or dead-lettered if it can never be; the results are from `queue`."""
        channel = topology.channel_of(queue)
        pause = FIRST_PAUSE
        while results:
            outcomes = await self._batcher.submit_all([Reported(result, channel) for result in results])
            locked = []
            for result, outcome in zip(results, outcomes, strict=True):
                if outcome is LOCKED:
                    locked.append(result)
                elif isinstance(outcome, Failed):
                    await self._bury(result, _reason(outcome.error, result), queue=queue)
                elif outcome is not None:
                    self._metrics.refused[queue, outcome].inc()
                    await self._bury(result, outcome, queue=queue)
            results = locked
            if results:
                if pause == LONGEST_PAUSE / 2:
                    ids = {"delivery_id": str(results[0].delivery_id), "results": len(results)}
                    log.warning("results wait until another transaction unlocks their deliveries", extra=ids)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _flush(self, reports: Sequence[Reported]) -> Sequence[Refusal | Locked | None]:
        """Commit the results; return for each of them None, or why it has no effect."""
        with self._tracing.group("commit results", (result.traceparent for result, _ in reports)):
            # This retries until the results are committed, because giving up would dead-letter valid results.
            applied = await self._database_outage.retry(lambda: self._store.apply(reports), DatabaseUnavailable)
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

    async def _bury(self, result: DeliveryResult, reason: str, *, queue: str) -> None:
        """Publish the result as a dead letter, and return once that is confirmed."""
        log.error("dead-lettering a result", extra={"reason": reason, "queue": queue})
        # The result becomes a complete message, which can be requeued unchanged once the cause is fixed.
        body = DeliveryResults(results=(result,)).model_dump_json().encode()
        await bury(self._publisher, body, queue=queue, reason=reason)


def _reason(error: Exception, result: DeliveryResult) -> str:
    if isinstance(error, DataRejected):
        return str(error)
    log.error("a result cannot be applied", extra={"delivery_id": str(result.delivery_id)}, exc_info=error)
    return f"bug: {type(error).__name__}"
