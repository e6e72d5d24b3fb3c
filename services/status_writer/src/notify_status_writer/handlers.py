"""The handlers for results and dead letters; `application.py` connects them to their queues."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from uuid import UUID

from faststream.rabbit import RabbitMessage
from notify_common.contracts import messages, topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.trace_context import TRACEPARENT_HEADER, read_traceparent
from notify_common.errors import PoisonMessage
from notify_common.rabbitmq.dead_letters import queue_where_it_died
from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import Tracing
from notify_database.errors import DatabaseUnavailable
from pydantic import ValidationError

from notify_status_writer.result_store import ResultStore
from notify_status_writer.result_writer import ResultWriter

log = logging.getLogger(__name__)

DELIVERY_QUEUES = {topology.delivery_queue_name(channel): channel for channel in Channel}


async def decode_results(message: RabbitMessage) -> messages.DeliveryResults | messages.ResultsEnvelope:
    """Return the results, or unparsed items if one is unreadable; raise `PoisonMessage` if the envelope is."""
    if len(message.body) > messages.MAX_RESULTS_BYTES:
        raise PoisonMessage(f"longer than {messages.MAX_RESULTS_BYTES} bytes")
    with suppress(ValueError):
        return messages.DeliveryResults.from_body(message.body)
    try:
        return messages.ResultsEnvelope.from_body(message.body)
    except ValueError:
        raise PoisonMessage("unreadable") from None


class ResultsHandler:
    """Handles the results that senders report to one queue."""

    def __init__(self, writer: ResultWriter, tracing: Tracing, queue: str) -> None:
        self._writer = writer
        self._tracing = tracing
        self._queue = queue

    async def handle(self, message: messages.DeliveryResults | messages.ResultsEnvelope) -> None:
        """Return only once every result is committed or dead-lettered, because the message is then acked.

        If some results are unreadable, raise `PoisonMessage` once the others are committed. The message is then
        dead-lettered as it came, because a dead letter for each result would let one message fill the archive. It can
        still be requeued, because results that were written before change nothing.
        """
        if isinstance(message, messages.DeliveryResults):
            results: Sequence[messages.DeliveryResult] = message.results
        else:
            results = _readable(message.results)
        with ExitStack() as spans:
            if self._tracing.on:
                for result in results:
                    written = {"notify.delivery_id": result.delivery_id, "notify.outcome": result.outcome}
                    spans.enter_context(self._tracing.begin("write status", result.traceparent, "consumer", written))
            await self._writer.write(results, queue=self._queue)
        if unreadable := len(message.results) - len(results):
            raise PoisonMessage(f"unreadable results: {unreadable}")


def _readable(items: Iterable[object]) -> Sequence[messages.DeliveryResult]:
    results = []
    for item in items:
        with suppress(ValidationError):
            results.append(messages.DeliveryResult.model_validate(item))
    return results


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The readable parts of a dead letter."""

    message_id: str | None
    queue: str | None
    """The queue in which the message died."""
    request: messages.DeliveryRequested | None
    delivery_id: UUID | None
    """Taken from the headers, but only if the body is unreadable; `round` is always taken from the headers."""
    round: int | None
    traceparent: str | None


async def decode_dead_letter(message: RabbitMessage) -> DeadLetter:
    """Parse the body of a dead letter; if it is unreadable or too long, take the delivery id from the headers."""
    headers = message.headers
    request = delivery_id = None
    if len(message.body) <= messages.MAX_REQUEST_BYTES:
        with suppress(ValueError):
            request = messages.DeliveryRequested.from_body(message.body)
    if request is None:
        with suppress(ValueError):
            delivery_id = UUID(str(headers.get(messages.DELIVERY_ID_HEADER)))
    named_round = headers.get(messages.ROUND_HEADER)
    return DeadLetter(
        message_id=message.raw_message.message_id,
        queue=queue_where_it_died(headers),
        request=request,
        delivery_id=delivery_id,
        round=named_round if isinstance(named_round, int) else None,
        traceparent=read_traceparent(headers.get(TRACEPARENT_HEADER)),
    )


class DeadLetterHandler:
    """Marks the deliveries of dead letters as failed, because they would otherwise stay open forever.

    Dead letters of deliveries on other channels than `channel` are refused. If it is None, the channel is that of the
    queue in which the message died.

    The archive keeps a copy of each dead letter, and each inbox gets one. Marking a delivery twice changes nothing, but
    only one inbox should be handled with `log_level` ERROR.
    """

    def __init__(
        self,
        store: ResultStore,
        writer: ResultWriter,
        channel: Channel | None = None,
        log_level: int = logging.ERROR,
    ) -> None:
        self._channel = channel
        self._store = store
        self._writer = writer
        self._log_level = log_level
        self._database_outage = Outage(log, "dead-lettered deliveries cannot be looked up")

    async def handle(self, letter: DeadLetter) -> None:
        """Mark the delivery as failed (class `poison`). Ignore a dead result, because its delivery may be fine."""
        channel = DELIVERY_QUEUES.get(letter.queue or "")
        if channel is None:
            return
        channel = self._channel or channel
        delivery_id = letter.delivery_id if letter.request is None else letter.request.delivery_id
        ids = {"message_id": letter.message_id, "delivery_id": None if delivery_id is None else str(delivery_id)}
        what = "the message of a delivery was dead-lettered" if delivery_id else "dead letter names no delivery"
        log.log(self._log_level, what, extra=ids)
        result = await self._result_of(letter)
        if result is not None:
            result = result.model_copy(update={"traceparent": letter.traceparent})
            # The result is refused if the delivery belongs to another channel.
            await self._writer.write([result], queue=topology.results(channel).queue.name)

    async def _result_of(self, letter: DeadLetter) -> messages.DeliveryResult | None:
        """Return a result that marks the delivery as failed; None if the letter names none that is open in this round.

        For example, the letter's other copy may have been handled before.
        """
        request, delivery_id = letter.request, letter.delivery_id
        if request is not None:
            # The request contains the number of the attempt that was due, which follows the last one that was made.
            failures = messages.incremented(request.failures)
            return _poison(request.delivery_id, request.round, request.attempt, failures)
        if delivery_id is None:
            return None
        delivery = await self._database_outage.retry(lambda: self._store.read(delivery_id), DatabaseUnavailable)
        if delivery is None or delivery.status.final or letter.round not in {None, delivery.round}:
            return None
        attempt, failures = messages.incremented(delivery.attempt), messages.incremented(delivery.failures)
        return _poison(delivery_id, delivery.round, attempt, failures)


def _poison(delivery_id: UUID, round_: int, attempt: int, failures: int) -> messages.DeliveryResult:
    now = utc_now()
    return messages.DeliveryResult(
        delivery_id=delivery_id,
        round=round_,
        attempt=attempt,
        failures=failures,
        outcome=messages.Outcome.FAILED,
        error_class=messages.ErrorClass.POISON,
        started_at=now,
        finished_at=now,
    )
