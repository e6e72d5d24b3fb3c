"""Each notification has its own trace, from the POST request to the stored status."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryRequested
from notify_common.contracts.trace_context import read_traceparent
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.settings import TracedSettings
from notify_common.runtime.span_export import RecordedTracing
from notify_common.sending.errors import PermanentFailure, TemporaryFailure
from notify_database.engine import PostgresSettings
from notify_gateway.http.principal import Scope
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode
from sqlalchemy.ext.asyncio import AsyncEngine
from support.fakes import FakeProvider
from support.gateway import bearer
from support.services import NOWHERE, eventually, running_gateway, running_sender, running_status_writer
from typing_extensions import override

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
BATCHES = {"commit notifications", "publish deliveries", "publish results", "commit results"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def recording(exporter: InMemorySpanExporter) -> RecordedTracing:
    provider = TracerProvider(span_limits=SpanLimits(max_links=1000))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return RecordedTracing(provider)


async def fail_once(request: DeliveryRequested) -> str:
    if request.attempt == 1:
        raise TemporaryFailure("busy")
    return "sent"


async def reject(_: DeliveryRequested) -> str:
    raise PermanentFailure("blocked")


def tree(spans: Sequence[ReadableSpan]) -> object:
    """Return the tree of span names as nested lists, sorted by name."""

    def below(parent: int | None) -> list[object]:
        children = [span for span in spans if (span.parent.span_id if span.parent else None) == parent]
        named = [[span.name, *below(span.context.span_id)] for span in children if span.context]
        return sorted(named, key=str)

    return below(None)


async def final(api: httpx.AsyncClient, ids: Sequence[str]) -> bool:
    responses = [(await api.get(f"/api/notifications/{id_}")).json() for id_ in ids]
    return all(response["status"] != "pending" for response in responses)


async def test_trace_has_exactly_the_steps_of_its_notification(
    rabbit: RabbitSettings, postgres: PostgresSettings, recording: RecordedTracing, exporter: InMemorySpanExporter
) -> None:
    async with (
        running_sender(rabbit, FakeProvider(fail_once), tracing=recording),
        running_sender(rabbit, FakeProvider(reject), channel=Channel.EMAIL, tracing=recording),
        running_status_writer(rabbit, postgres, tracing=recording),
        running_gateway(rabbit, postgres, tracing=recording) as api,
    ):
        body = {"user_id": 1, "message": "hello", "channels": ["telegram", "email"]}
        responses = await asyncio.gather(*(api.post("/api/notifications", json=body) for _ in range(30)))
        stored = [response.json() for response in responses]
        await eventually(lambda: final(api, [each["id"] for each in stored]), "all notifications are final")

    traces: defaultdict[str, list[ReadableSpan]] = defaultdict(list)
    batches: defaultdict[str, list[ReadableSpan]] = defaultdict(list)
    for span in exporter.get_finished_spans():
        assert span.context is not None
        if span.name in BATCHES:
            batches[span.name].append(span)
        else:
            traces[f"{span.context.trace_id:032x}"].append(span)
    assert set(traces) == {each["trace_id"] for each in stored}
    for each in stored:
        spans = traces[each["trace_id"]]
        assert tree(spans) == [
            [
                "POST /api/notifications",
                ["publish email", ["attempt email", ["send email"], ["write status"]]],
                [
                    "publish telegram",
                    [
                        "attempt telegram",
                        ["attempt telegram", ["send telegram"], ["write status"]],
                        ["send telegram"],
                        ["write status"],
                    ],
                ],
            ]
        ]
        attempts = [span.attributes for span in spans if span.name.startswith("attempt")]
        notification_ids = {attributes["notify.notification_id"] for attributes in attempts if attributes}
        assert notification_ids == {each["id"]}
        (refused,) = (span for span in spans if span.name == "send email")
        assert (refused.status.status_code, refused.status.description) == (StatusCode.ERROR, "blocked")
        assert "hello" not in str([span.to_json() for span in spans])
    # A batch has a separate trace, which links once to each of its members.
    expected_links = {"commit notifications": 30, "publish deliveries": 60, "publish results": 90, "commit results": 90}
    for name, count in expected_links.items():
        links = [link.context for span in batches[name] for link in span.links]
        assert len({link.span_id for link in links}) == len(links) == count
        assert {f"{link.trace_id:032x}" for link in links} == set(traces)


async def test_client_trace_continues_through_the_outbox(
    rabbit: RabbitSettings, postgres: PostgresSettings, recording: RecordedTracing, exporter: InMemorySpanExporter
) -> None:
    body = {"user_id": 1, "message": "hello", "type": "email"}
    async with running_gateway(rabbit, postgres, relaying=False, tracing=recording) as api:
        stored = (await api.post("/api/notifications", json=body, headers={"traceparent": TRACEPARENT})).json()
        assert stored["trace_id"] == TRACE_ID
    async with (
        running_sender(rabbit, FakeProvider(reject), channel=Channel.EMAIL, tracing=recording),
        running_status_writer(rabbit, postgres, tracing=recording),
        running_gateway(rabbit, postgres, tracing=recording) as api,
    ):
        await eventually(lambda: final(api, [stored["id"]]), "the delivery has failed")
        assert (await api.post(f"/api/deliveries/{stored['deliveries'][0]['id']}/retry")).status_code == 202

        async def failed_twice() -> bool:
            notification = (await api.get(f"/api/notifications/{stored['id']}")).json()
            return [attempt["round"] for attempt in notification["deliveries"][0]["attempts"]] == [1, 2]

        await eventually(failed_twice, "both rounds have failed")
    names = [
        span.name
        for span in exporter.get_finished_spans()
        if span.context is not None and f"{span.context.trace_id:032x}" == TRACE_ID
    ]
    once = ["POST /api/notifications"]
    assert sorted(names) == sorted([*once, *["publish email", "attempt email", "send email", "write status"] * 2])


async def test_only_a_key_with_the_scope_trace_decides_what_is_traced(
    postgres: PostgresSettings, engine: AsyncEngine, exporter: InMemorySpanExporter
) -> None:
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    body = {"user_id": 1, "message": "hello", "type": "email"}
    permitted = await bearer(engine, Scope.SEND, Scope.TRACE)
    tracing = RecordedTracing(provider)
    async with running_gateway(NOWHERE, postgres, relaying=False, tracing=tracing, auth="on") as api:
        responses = [
            await api.post("/api/notifications", json=body, headers={**key, "traceparent": TRACEPARENT})
            for key in (await bearer(engine, Scope.SEND), {"Authorization": "Bearer unknown"}, permitted)
        ]
    assert [response.status_code for response in responses] == [201, 401, 201]
    own, _, continued = [response.json().get("trace_id") for response in responses]
    assert continued == TRACE_ID
    assert own not in {None, TRACE_ID}
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans if span.name not in BATCHES] == ["POST /api/notifications"]


async def test_client_trace_is_propagated_and_logged_without_an_exporter(
    rabbit: RabbitSettings, postgres: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    provider = FakeProvider(reject)
    body = {"user_id": 1, "message": "hello", "type": "email"}
    async with (
        running_sender(rabbit, provider, channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        running_gateway(rabbit, postgres) as api,
    ):
        traced = (await api.post("/api/notifications", json=body, headers={"traceparent": TRACEPARENT})).json()
        untraced = (await api.post("/api/notifications", json=body, headers={"traceparent": "00-none"})).json()
        assert (traced["trace_id"], untraced["trace_id"]) == (TRACE_ID, None)
        await eventually(lambda: final(api, [traced["id"], untraced["id"]]), "both deliveries have failed")
    traceparents = {str(call.notification_id): call.traceparent for call in provider.calls}
    assert traceparents == {traced["id"]: TRACEPARENT, untraced["id"]: None}
    logged = {vars(line)["notification_id"]: vars(line).get("trace_id") for line in caplog.records if line.msg == "%s"}
    assert logged == {traced["id"]: TRACE_ID, untraced["id"]: None}


@pytest.mark.parametrize(
    "text",
    [
        None, b"00", "", f"ff-{TRACE_ID}-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE_ID}-{'0' * 16}-01", TRACEPARENT.upper(), f"{TRACEPARENT}\n",
    ],
)  # fmt: skip
def test_invalid_traceparent_is_ignored(text: object) -> None:
    assert read_traceparent(text) is None


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Run an OTLP endpoint; yield its URL and the requests that it has received."""
    posted: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        @override
        def log_message(self, *_: object) -> None:
            """Log nothing, to keep the test output readable."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()
        thread.join()


def test_spans_are_exported_to_the_endpoint(collector: tuple[str, list[tuple[str, bytes]]]) -> None:
    endpoint, posted = collector
    tracing = TracedSettings.model_validate({"otel_exporter_otlp_endpoint": endpoint}).tracing("gateway")
    with tracing.begin("step", None):
        pass
    assert isinstance(tracing, RecordedTracing)
    tracing.provider.shutdown()
    ((path, body),) = posted
    assert path == "/v1/traces"
    assert b"gateway" in body
    assert b"step" in body
