"""Ends the deliveries whose messages died, so that none stays open for ever."""

import logging
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import (
    DELIVERY_ID_HEADER,
    ROUND_HEADER,
    DeliveryRequested,
    DeliveryResult,
    ErrorClass,
    Outcome,
)
from notify_common.contracts.topology import delivery_queue_name
from notify_common.contracts.trace_context import TRACEPARENT_HEADER, read_traceparent
from notify_common.rabbitmq.consumer import Message
from notify_common.rabbitmq.dead_letters import queues_of_death
from notify_common.runtime.clock import utc_now
from notify_common.runtime.outage import Outage
from notify_database.errors import DatabaseUnavailable
from pydantic import ValidationError

from notify_status_writer.result_store import ResultStore
from notify_status_writer.results_writer import ResultsWriter

log = logging.getLogger(__name__)

DELIVERY_QUEUES = frozenset(delivery_queue_name(channel) for channel in Channel)


class DeadInbox:
    """Reads its own copy of the dead letters; the archive keeps the other."""

    def __init__(self, store: ResultStore, results: ResultsWriter) -> None:
        self._store = store
        self._results = results
        self._database_outage = Outage(log, "dead deliveries can not be looked up")

    async def handle(self, message: Message) -> None:
        """End the delivery as failed (class poison). A dead result says nothing about its delivery."""
        if not queues_of_death(message.headers) & DELIVERY_QUEUES:
            return
        result = await self._result_of(message)
        if result is None:
            log.error("dead message names no open delivery", extra={"message_id": message.message_id})
        else:
            log.error("delivery is dead", extra={"delivery_id": str(result.delivery_id)})
            traceparent = read_traceparent(message.headers.get(TRACEPARENT_HEADER))
            await self._results.write([result.model_copy(update={"traceparent": traceparent})])

    async def _result_of(self, message: Message) -> DeliveryResult | None:
        try:
            request = DeliveryRequested.model_validate_json(message.body)
        except ValidationError:
            return await self._result_by_headers(message)
        return _poison(request.delivery_id, request.round, request.attempt, request.failures + 1)

    async def _result_by_headers(self, message: Message) -> DeliveryResult | None:
        try:
            delivery_id = UUID(str(message.headers.get(DELIVERY_ID_HEADER)))
        except ValueError:
            return None
        delivery = await self._database_outage.retry(lambda: self._store.read(delivery_id), DatabaseUnavailable)
        if delivery is None or delivery.status.final:
            return None
        named_round = message.headers.get(ROUND_HEADER)
        if isinstance(named_round, int) and named_round != delivery.round:
            return None
        return _poison(delivery_id, delivery.round, delivery.attempt + 1, delivery.failures + 1)


def _poison(delivery_id: UUID, round_: int, attempt: int, failures: int) -> DeliveryResult:
    now = utc_now()
    return DeliveryResult(
        delivery_id=delivery_id,
        round=round_,
        attempt=attempt,
        failures=failures,
        outcome=Outcome.FAILED,
        error_class=ErrorClass.POISON,
        started_at=now,
        finished_at=now,
    )
