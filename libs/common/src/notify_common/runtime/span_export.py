"""Record and export spans with OpenTelemetry, whose own variables (`OTEL_…`) control sampling and batching."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from socket import gethostname

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Link, SpanKind, StatusCode, get_current_span
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from typing_extensions import override

from notify_common.contracts.trace_context import TRACEPARENT_HEADER
from notify_common.runtime.outage import Outage
from notify_common.runtime.tracing import Attributes, Kind, Span, Tracing

log = logging.getLogger(__name__)

EXPORT_TIMEOUT = 2.0  # seconds per batch; up to four batches may be left when the process stops
MAX_LINKS = 5000  # the maximum number of members in a group
W3C = TraceContextTextMapPropagator()


def export_spans(otlp_endpoint: str, service: str) -> Tracing:
    """Return tracing that exports spans in batches, from a thread, and the rest when the process ends."""
    resource = Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: gethostname()})
    provider = TracerProvider(resource=resource, span_limits=SpanLimits(max_links=MAX_LINKS))
    # The OTLP specification appends this path to an endpoint that is set for all signals.
    exporter = _QuietExporter(f"{otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it logs several lines per failed batch
    return RecordedTracing(provider)


class _QuietExporter(OTLPSpanExporter):
    """An exporter that logs an unavailable collector like any other outage."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint=endpoint, timeout=EXPORT_TIMEOUT)
        self._outage = Outage(log, "traces cannot be exported")

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            self._outage.ended()
        else:
            self._outage.failed("the collector at OTEL_EXPORTER_OTLP_ENDPOINT did not accept them")
        return result


class RecordedSpan(Span):
    """An OpenTelemetry span."""

    __slots__ = ("_span",)

    def __init__(self, span: OpenTelemetrySpan) -> None:
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span))
        super().__init__(carrier.get(TRACEPARENT_HEADER))
        self._span = span

    @override
    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_present(attributes))

    @override
    def fail(self, error: str) -> None:
        self._span.set_status(StatusCode.ERROR, error)

    @override
    def end(self) -> None:
        self._span.end()


class RecordedTracing(Tracing):
    """Tracing with OpenTelemetry spans, which `provider` creates."""

    on = True

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("notify")

    @override
    def begin(
        self, name: str, parent: str | None, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> Span:
        context = W3C.extract({} if parent is None else {TRACEPARENT_HEADER: parent})
        present = _present(attributes or {})
        return RecordedSpan(self._tracer.start_span(name, context, SpanKind[kind.upper()], attributes=present))

    @override
    @contextmanager
    def group(self, name: str, members: Iterable[str | None]) -> Iterator[None]:
        parents = [W3C.extract({TRACEPARENT_HEADER: member}) for member in members if member is not None]
        links = [Link(get_current_span(parent).get_span_context()) for parent in parents]
        # Only the error's type is recorded, because a driver's error text may contain users' data.
        with RecordedSpan(self._tracer.start_span(name, W3C.extract({}), links=links)):
            yield


def _present(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {
        name: value if isinstance(value, str | int | float) else str(value)
        for name, value in attributes.items()
        if value is not None
    }
