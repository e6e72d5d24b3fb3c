"""A sender: make one attempt per message, report its result, and schedule a retry if necessary."""

import asyncio
import logging
import math
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from notify_common.contracts import messages
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested, DeliveryResult, Outcome
from notify_common.contracts.trace_context import TRACEPARENT_HEADER, read_traceparent, trace_id
from notify_common.errors import PoisonMessage
from notify_common.rabbitmq.connection import RECONNECT_INTERVAL
from notify_common.rabbitmq.consumer import Message
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.runtime.clock import utc_now
from notify_common.runtime.tracing import UNTRACED, Span, Tracing
from notify_common.sending.admission_by_provider import AdmissionByProvider
from notify_common.sending.admission_control import Admission
from notify_common.sending.attempt import Decision, Postponed, attempt_delivery
from notify_common.sending.attempt_memory import AttemptMemory, RememberedAttempt
from notify_common.sending.call import Call
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.postpone import postpone
from notify_common.sending.process_pauses import ProcessPauses
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.result_reporter import ResultReporter
from notify_common.sending.retry_publisher import RetryPublisher
from notify_common.sending.retry_schedule import RetrySchedule, is_early
from notify_common.sending.simulator import is_simulated

log = logging.getLogger(__name__)

REMEMBERED_ATTEMPTS = 10_000
LOG_LEVELS = {Outcome.SENT: logging.DEBUG, Outcome.FAILED: logging.WARNING}


class Sender:
    """Handles the messages of one channel. It has no database: it publishes results and retries as messages.

    The methods begin with the normal path, in the order of calls. After `drained` come those for retries, for
    redelivered messages, and for results that cannot be reported.
    """

    def __init__(
        self,
        results_publisher: ConfirmedPublisher,
        retries: RetryPublisher,
        *,
        channel: Channel,
        provider: Provider,
        provider_timeout: float,
        schedule: RetrySchedule,
        metrics: SenderMetrics,
        pauses: ProcessPauses,
        controls: AdmissionByProvider | None = None,
        tracing: Tracing = UNTRACED,
    ) -> None:
        self._retries = retries
        self._channel = channel
        self._provider = provider
        self._provider_timeout = provider_timeout
        self._retry_schedule = schedule
        self._metrics = metrics
        self._controls = controls
        self._tracing = tracing
        self._attempts = AttemptMemory(self._attempt_and_report, keep=REMEMBERED_ATTEMPTS)
        metrics.in_flight.set_function(self._attempts.in_progress)
        self.pauses = pauses
        self.reporter = ResultReporter(results_publisher, channel, metrics, tracing)

    async def handle(self, message: Message) -> None:
        """Return only once the message's result and any retry are confirmed, because the message is then acked."""
        request, now = self._parse(message), utc_now()
        if is_early(request, now):
            await self._return_to_retry_queue(request, now)
            return
        if self._attempts.already_postponed(request):
            return  # the message was redelivered, and the request that follows it is in a retry queue
        if not self.reporter.can_report.is_set():
            await self._wait_until_reporting(request)
        # This starts the attempt. A redelivered message joins its earlier attempt instead, running or finished.
        with self._attempts.join(request) as attempt:
            had_ended = attempt.decision.done()  # if so, its request has come again
            # The decision is there once its result is confirmed. The shield keeps the provider call alive if this
            # handler is cancelled.
            decision = await asyncio.shield(attempt.decision)
            if had_ended:
                self._report_again(decision)
            if decision.next_request is not None:
                # The wait counts from the end of the attempt, so that it matches one queue's delay exactly.
                ended_at = utc_now() if isinstance(decision, Postponed) else decision.result.finished_at
                await self._schedule_next_request(attempt, decision.next_request, ended_at)
                if isinstance(decision, Decision):
                    attempt.forget_next_request(decision)

    def _parse(self, message: Message) -> DeliveryRequested:
        if len(message.body) > messages.MAX_REQUEST_BYTES:
            raise PoisonMessage(f"longer than {messages.MAX_REQUEST_BYTES} bytes")
        try:
            request = DeliveryRequested.from_body(message.body)
        except ValidationError as error:
            where = [".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)]
            raise PoisonMessage(f"unreadable: {', '.join(where) or 'invalid JSON'}") from None
        except ValueError:
            raise PoisonMessage("unreadable: invalid JSON") from None
        if request.channel is not self._channel:
            raise PoisonMessage(f"belongs to channel {request.channel}")
        traceparent = read_traceparent(message.headers.get(TRACEPARENT_HEADER))
        return request if traceparent is None else request.model_copy(update={"traceparent": traceparent})

    async def _attempt_and_report(self, request: DeliveryRequested) -> Decision | Postponed:
        with self._tracing.begin(f"attempt {self._channel}", request.traceparent, "consumer") as span:
            if self._tracing.on:
                # This span is the parent for the result and the next attempt.
                request = request.model_copy(update={"traceparent": span.traceparent})
            simulated = is_simulated(request)
            if self._controls is None or simulated:
                decision: Decision | Postponed = await self._make_attempt(request)
            else:
                decision = await self._make_attempt_if_admitted(self._controls, request)
            if isinstance(decision, Postponed):
                span.set({"notify.outcome": "postponed"})
                self._metrics.postponed.inc()
                return decision
            if decision.failure is not None:
                # Its `__context__` may hold the message's content, which would stay in memory as long as the attempt.
                decision = replace(decision, failure=None)
            # The result is reported even if the message's connection is lost, because the provider may have sent it.
            await self.reporter.report(decision.result)
            self._metrics.ended(decision.result, simulated=simulated)
            self._log_result(request, decision.result, span)
            return decision

    async def _make_attempt(self, request: DeliveryRequested) -> Decision:
        # If this process was suspended (SIGSTOP), RabbitMQ may have closed the connection and given the message to
        # another sender. In that case, this attempt is cancelled during the wait, so that it makes no second call.
        await self.pauses.over.wait()
        self._attempts.mark_calling(request)
        with self._tracing.begin(f"send {self._channel}", request.traceparent, "client") as span:
            decision = await attempt_delivery(self._provider, request, self._provider_timeout, self._retry_schedule)
            if decision.failure is not None:
                span.fail(decision.failure.code)
            return decision

    async def _make_attempt_if_admitted(
        self, controls: AdmissionByProvider, request: DeliveryRequested
    ) -> Decision | Postponed:
        now = utc_now()
        control = controls.for_recipient(request.recipient or "")
        if request.expires_at is not None and request.expires_at <= now:
            return await self._make_attempt(request)  # it reports the expiry instead of calling the provider
        async with control.admission(self._call_for(request, controls.limits, now)) as admission_or_refusal:
            if isinstance(admission_or_refusal, Admission):
                decision = await self._make_attempt(request)
                admission_or_refusal.record(decision)
                return decision
        now = utc_now()
        if request.expires_at is not None and request.expires_at <= now:
            return await self._make_attempt(request)  # the delivery expired while it waited
        return postpone(request, admission_or_refusal, now)

    def _call_for(self, request: DeliveryRequested, limits: ProviderLimits, now: datetime) -> Call:
        """Return the call that the request asks for, with what its admission depends on."""
        since = request.waiting_since
        expires_in = math.inf if request.expires_at is None else (request.expires_at - now).total_seconds()
        return Call(
            request.recipient or "",
            timeout=min(limits.admission_timeout.total_seconds(), expires_in),
            turn_in=((request.not_before or now) - now).total_seconds() if request.reserved else None,
            expires_in=expires_in,
            # After `max_wait`, one last call is made through an open circuit, so that the delivery gets a real error.
            even_if_open=since is not None and now - since >= self._retry_schedule.max_wait,
            quotas=limits.quotas_of(request),
            further=limits.further_messages_of(request),
            # Results may become unreportable while the call waits.
            ready=self.reporter.can_report,
        )

    def _log_result(self, request: DeliveryRequested, result: DeliveryResult, span: Span) -> None:
        """Log one line per attempt; successes are logged at DEBUG only."""
        level = LOG_LEVELS.get(result.outcome, logging.INFO)
        if self._tracing.on:
            span.set({f"notify.{name}": value for name, value in _log_fields(request, result).items()})
        if log.isEnabledFor(level):
            trace = {"trace_id": trace_id(request.traceparent)} if request.traceparent else {}
            log.log(level, "%s", result.outcome.value, extra={**_log_fields(request, result), **trace})

    async def drained(self) -> None:
        """Wait until every attempt has finished and been reported, even if its message's connection was lost."""
        await self._attempts.drained()

    async def _schedule_next_request(
        self, attempt: RememberedAttempt, request: DeliveryRequested, wait_from: datetime
    ) -> None:
        """Publish the attempt's next request to a retry queue, and return once the broker has confirmed it.

        If the message was redelivered, several handlers may wait here; they share one publish. A handler whose
        connection is lost is cancelled, and the handler of the redelivered message takes over.
        """
        while True:
            task = attempt.publishing
            if task is None or (task.done() and not task.result()):
                task = attempt.publishing = asyncio.create_task(self._retries.publish(request, wait_from))
            if await asyncio.shield(task):
                return
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _return_to_retry_queue(self, request: DeliveryRequested, now: datetime) -> None:
        """Let the message wait again. It left its retry queue early, because queues have fixed delays."""
        while not await self._retries.publish(request, now):  # noqa: ASYNC110 - it waits for the broker, not for a flag
            await asyncio.sleep(RECONNECT_INTERVAL)

    def _report_again(self, decision: Decision | Postponed) -> None:
        """Report the result of an attempt that had already ended when its request came again.

        The gateway requests an attempt again if its result was lost after RabbitMQ had confirmed it.
        """
        if isinstance(decision, Decision):
            # The ack does not wait, because publishing may be blocked, and the gateway asks again if this is lost.
            self.reporter.report_soon(decision.result)

    async def _wait_until_reporting(self, request: DeliveryRequested) -> None:
        """Wait until results can be reported, unless the attempt has already begun; `ResultReporter` says why.

        The wait is safe: as the attempt has not begun, RabbitMQ may give the message to another sender meanwhile.
        """
        if not self._attempts.remembers(request):
            await self.reporter.can_report.wait()


def _log_fields(request: DeliveryRequested, result: DeliveryResult) -> dict[str, object]:
    fields = {
        "notification_id": str(request.notification_id), "delivery_id": str(request.delivery_id),
        "channel": request.channel.value, "round": request.round, "attempt": result.attempt,
        "error_class": result.error_class, "error_code": result.error_code,
        "next_attempt_at": result.next_attempt_at and result.next_attempt_at.isoformat(),
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value}
