"""Reads results, has them written in groups, and acks each message only after the commit of its group."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from notify_common import topology
from notify_common.confirmed_publisher import ConfirmedPublisher
from notify_common.consumer import Message, Poison
from notify_common.dead_letters import bury
from notify_common.events import EventPublisher
from notify_common.group_commit import GroupCommit
from notify_common.lasting_fault import LastingFault
from notify_common.messages import DeliveryResult, ResultsEnvelope
from notify_common.tracing import UNTRACED, Tracing
from notify_database.engine import DatabaseAway, StatementRefused
from pydantic import ValidationError
from pydantic_core import to_json

from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import Applied, ResultStore

log = logging.getLogger(__name__)

MESSAGES_PER_TRANSACTION = 20  # of up to 200 results each
GROUP_INTERVAL = 0.01  # seconds


class ResultsConsumer:
    """Applies what senders report."""

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
        self._database_fault = LastingFault(log, "results can not be written")
        self._group_commit = GroupCommit(
            self._commit,
            max_group=MESSAGES_PER_TRANSACTION,
            interval=GROUP_INTERVAL,
            refusals=(StatementRefused,),
            observe=metrics.results_together,
        )

    async def handle(self, message: Message) -> None:
        """Handle one message of results to its end."""
        try:
            envelope = ResultsEnvelope.model_validate_json(message.body)
        except ValidationError:
            raise Poison("unreadable") from None
        results: list[DeliveryResult] = []
        for item in envelope.results:
            try:
                results.append(DeliveryResult.model_validate_json(to_json(item)))
            except ValidationError:
                await self._bury(item, "unreadable result")
        with ExitStack() as spans:
            if self._tracing.on:
                for result in results:
                    written = {"notify.delivery_id": result.delivery_id, "notify.outcome": result.outcome}
                    spans.enter_context(self._tracing.begin("write status", result.traceparent, "consumer", written))
            await self.write(results)

    async def write(self, results: Sequence[DeliveryResult]) -> None:
        """Return once all that can be applied is committed and the rest is among the dead letters."""
        try:
            await self._group_commit.submit(results)
        except StatementRefused as refusal:
            if len(results) == 1:
                await self._bury(results[0], str(refusal))
            else:
                for result in results:
                    await self.write([result])

    async def _commit(self, group: Sequence[Sequence[DeliveryResult]]) -> None:
        results = [result for message in group for result in message]
        with self._tracing.group("commit results", (result.traceparent for result in results)):
            applied = await self._apply(results)
        for result in applied.unknown:
            await self._bury(result, "unknown delivery")
        self._events.tell(applied.changes)
        self._metrics.results.inc(len(results))
        for change in applied.changes:
            self._metrics.changed(change)

    async def _apply(self, results: Sequence[DeliveryResult]) -> Applied:
        while True:
            try:
                applied = await self._store.apply(results)
            except DatabaseAway as error:
                # The same group again: with the next one written and acked, this one would be lost.
                await asyncio.sleep(self._database_fault.occurred(error))
            else:
                self._database_fault.over()
                return applied

    async def _bury(self, result: Any, reason: str) -> None:  # noqa: ANN401 - a result, or what could not be read as one
        log.error("result goes to the dead letters", extra={"reason": reason})
        # A whole message, which can be put back once its reason is mended.
        body = to_json(ResultsEnvelope(version=1, results=(result,)))
        await bury(self._publisher, body, queue=topology.results().queue.name, reason=reason)
