"""Report results to the status writer: batches are published until RabbitMQ confirms them."""

import asyncio
import logging
from collections.abc import Sequence

from notify_common.contracts import messages, topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryResult, DeliveryResults
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from notify_common.runtime.batch_interval import interval_after
from notify_common.runtime.batcher import Batcher
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import Tracing
from notify_common.sending.metrics import SenderMetrics

log = logging.getLogger(__name__)

REPORT_TIMEOUT = 1.0  # seconds until calls are held back because results are not confirmed


class ResultReporter:
    """Publishes the results of one channel's attempts.

    While results are not confirmed, no further calls should begin. A message whose result is not reported is
    redelivered after RabbitMQ's consumer timeout, and another sender would then send it a second time.
    """

    def __init__(
        self, publisher: ConfirmedPublisher, channel: Channel, metrics: SenderMetrics, tracing: Tracing
    ) -> None:
        self._publisher = publisher
        self._address = topology.results(channel)
        self._tracing = tracing
        self.can_report = asyncio.Event()
        """Set while results can be reported."""
        self.can_report.set()
        self._outage = Outage(log, "results cannot be reported, so no further calls begin")
        self._batcher = Batcher(
            self._publish,
            max_batch=messages.MAX_RESULTS,
            interval_after=interval_after,
            observe=metrics.observe_results_batch,
        )

    async def report(self, result: DeliveryResult) -> None:
        """Return once the result is confirmed, however long that takes."""
        await self._batcher.submit(result)

    def report_soon(self, result: DeliveryResult) -> None:
        """Report a result without waiting for the confirm."""
        self._batcher.submit_soon(result)

    async def _publish(self, results: Sequence[DeliveryResult]) -> list[None]:
        # Results are published until confirmed: duplicates are harmless, but a lost result would leave a delivery open.
        body = DeliveryResults(results=tuple(results)).model_dump_json().encode()
        message = OutgoingMessage(self._address.exchange, self._address.routing_key, body)
        overdue = asyncio.get_running_loop().call_later(REPORT_TIMEOUT, self._hold_calls)
        try:
            with self._tracing.group("publish results", (result.traceparent for result in results)):
                await self._publisher.publish_until_confirmed([message])
        finally:
            overdue.cancel()
            self.can_report.set()
        self._outage.ended()
        return [None for _ in results]

    def _hold_calls(self) -> None:
        self.can_report.clear()
        self._outage.failed(f"not confirmed within {REPORT_TIMEOUT:g} s")
