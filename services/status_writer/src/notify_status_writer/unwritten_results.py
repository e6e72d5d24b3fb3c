"""Results that the first try did not write: they are tried again, and dead-lettered if they can never be written."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from notify_common.contracts.messages import DeliveryResult, DeliveryResults
from notify_common.rabbitmq.dead_letters import dead_letter
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.batcher import Batcher, Failed
from notify_database.errors import ROW_ERRORS, StatementTimedOut

from notify_status_writer.delivery_state import Refusal, Reported
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import WriteOutcome

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.0625, 2.0  # seconds before results that could not be written are tried again
# Pauses double until they are the longest, so a message has only one of this length, and is logged only once.
LOGGED_PAUSE = LONGEST_PAUSE / 2
# Results are dead-lettered slowly, because the archive is bounded: at this rate, it takes a day to fill.
DEAD_LETTER_INTERVAL = 1.0  # seconds per result

ResultBatcher = Batcher[Reported, WriteOutcome | Refusal]
Outcomes = Sequence[WriteOutcome | Refusal | Failed]


@dataclass(slots=True)
class Groups:
    """A message's results that are not written, grouped by what to do with them."""

    waiting: list[Reported] = field(default_factory=list)
    """Their rows are locked, or a statement took too long. They are never dead-lettered."""
    failing: list[Reported] = field(default_factory=list)
    """Each of them makes a statement fail. They are dead-lettered if they still do so while others are written."""
    impossible: list[tuple[DeliveryResult, Failed | Refusal]] = field(default_factory=list)
    """They can never be written, because they were refused or a bug prevents it. They are dead-lettered at once."""
    error: Exception | None = None
    """The last error of `failing`, or else the first timeout."""


class UnwrittenResults:
    """Writes results that the first try did not write, or dead-letters them.

    Both batchers bisect a batch that fails: `batcher` isolates whole messages, and `isolator` isolates single results.
    `changes` returns the number of transactions with status changes.
    """

    def __init__(
        self,
        publisher: ConfirmedPublisher,
        metrics: StatusWriterMetrics,
        batcher: ResultBatcher,
        isolator: ResultBatcher,
        changes: Callable[[], int],
    ) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._batcher = batcher
        self._isolator = isolator
        self._changes = changes
        self._next_dead_letter = 0.0

    async def write_or_dead_letter(self, reports: Sequence[Reported], outcomes: Outcomes, *, queue: str) -> None:
        """Try again until every result is written or dead-lettered; `outcomes` are those of the first try."""
        pause, changes_before, isolating = FIRST_PAUSE, None, False
        while True:
            if not isolating and isinstance(outcomes[0], Failed):  # a message fails as a whole
                outcomes = await self._isolator.submit_all(reports)
            groups = _group(reports, outcomes)
            for result, outcome in groups.impossible:
                await self._give_up(result, outcome, queue=queue)
            isolating = isolating or groups.error is not None
            # Results are dead-lettered only after the longest pause, because a disk may fail for a moment.
            if groups.failing and pause == LONGEST_PAUSE and self._may_dead_letter(groups.failing, changes_before):
                failing = [each.result for each in groups.failing]
                await self._dead_letter(*failing, reason=str(groups.error), queue=queue)
                reports = groups.waiting
            else:
                reports = [*groups.waiting, *groups.failing]
                if groups.failing and changes_before is None:
                    changes_before = self._changes()
            if not reports:
                return
            await _pause(reports, pause, groups.error)
            pause = min(2 * pause, LONGEST_PAUSE)
            outcomes = await (self._isolator if isolating else self._batcher).submit_all(reports)

    def _may_dead_letter(self, failing: Sequence[Reported], changes_before: int | None) -> bool:
        """Return True if others have been written since results of this message first failed, unless it is too soon.

        `changes_before` is what `changes` returned at that first failure, or None if this is the first.
        """
        now = time.monotonic()
        if changes_before is None or self._changes() == changes_before or now < self._next_dead_letter:
            return False
        self._next_dead_letter = now + DEAD_LETTER_INTERVAL * len(failing)
        return True

    async def _give_up(self, result: DeliveryResult, outcome: Failed | Refusal, *, queue: str) -> None:
        """Dead-letter a result that can never be written."""
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


def _group(reports: Sequence[Reported], outcomes: Outcomes) -> Groups:
    groups = Groups()
    for report, outcome in zip(reports, outcomes, strict=True):
        error = outcome.error if isinstance(outcome, Failed) else None
        if outcome is WriteOutcome.LOCKED_ELSEWHERE:
            groups.waiting.append(report)
        elif isinstance(error, StatementTimedOut):  # for example, because the result's partition is locked
            groups.waiting.append(report)
            groups.error = groups.error or error
        elif isinstance(error, ROW_ERRORS):
            groups.failing.append(report)
            groups.error = error
        elif outcome is not WriteOutcome.WRITTEN:
            groups.impossible.append((report.result, outcome))
    return groups


async def _pause(reports: Sequence[Reported], pause: float, error: Exception | None) -> None:
    if pause == LOGGED_PAUSE:
        reason = "locked" if error is None else str(error)
        about = {"delivery_id": str(reports[0].result.delivery_id), "results": len(reports), "reason": reason}
        log.warning("results wait, because their deliveries cannot be updated", extra=about)
    await asyncio.sleep(pause)
