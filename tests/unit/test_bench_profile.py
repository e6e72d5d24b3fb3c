"""What `make bench-profile` computes from samples, statements and metrics."""

import re
from typing import Any

import pytest

from benchmarks.profile import tables
from benchmarks.profile.counts import Batches, batch_figures, message_figures, parse
from benchmarks.profile.flame_graph import NARROWEST, flame_graph
from benchmarks.profile.stacks import OTHER, above_the_loop, area, shares
from benchmarks.profile.stacks import parse as parse_stacks
from benchmarks.profile.statements import LENGTH, SHOWN, Counts, one_line, summarized

START = (
    "<module> (notify_gateway/__main__.py)",
    "main (notify_gateway/main.py)",
    "run (notify_common/runtime/process.py)",
)
LOOP = (*START, "Runner.run (asyncio/runners.py)")
LIMITS = "LimitsMiddleware.__call__ (notify_gateway/http/middleware.py)"
ENDPOINT = "NotificationEndpoint.__call__ (notify_gateway/notifications/endpoint.py)"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ((), "event loop (uvloop)"),
        ((LIMITS,), "ours: HTTP limits"),
        ((LIMITS, ENDPOINT), "ours: routes and endpoints"),
        ((LIMITS, ENDPOINT, "NotificationIntake._flush (notify_gateway/notifications/intake.py)"), "ours: intake"),
        (
            (LIMITS, ENDPOINT, LIMITS, "RequestResponseCycle.send (uvicorn/protocols/http/httptools_impl.py)"),
            "HTTP server (uvicorn, httptools)",
        ),
        ((ENDPOINT, "loads (json/__init__.py)", "JSONDecoder.decode (json/decoder.py)"), "ours: routes and endpoints"),
        (
            ("Connection.__writer (aiormq/connection.py)", "StreamWriter.write (asyncio/streams.py)"),
            "AMQP (aiormq, pamqp, aio-pika)",
        ),
        ((ENDPOINT, "BaseModel.model_validate (pydantic/main.py)"), "validation, JSON (pydantic)"),
        (("EventPublisher._publish_waiting (notify_common/rabbitmq/events.py)",), "ours: events"),
        (("ConfirmedPublisher.publish (notify_common/rabbitmq/publisher.py)",), "ours: publisher and consumer"),
        (("Email.send (notify_email_sender/smtp.py)",), "ours: other"),
    ],
)
def test_a_sample_counts_for_the_innermost_frame_that_belongs_to_an_area(
    frames: tuple[str, ...], expected: str
) -> None:
    assert area((*LOOP, *frames)) == expected


def test_a_sample_without_any_known_frame_is_not_attributed() -> None:
    assert area(("StreamWriter.write (asyncio/streams.py)",)) == OTHER
    assert area(START) == OTHER
    assert area(()) == OTHER


def test_profiles_are_read_without_line_numbers_and_without_waiting_threads() -> None:
    text = f"{';'.join(LOOP)};poll (asyncio/events.py:12) 3\n{';'.join(LOOP)};poll (asyncio/events.py:40) 2\n 4\n"
    text += "Thread.run (threading.py:9);select (selectors.py:451) 100\n"
    assert parse_stacks(text) == {(*LOOP, "poll (asyncio/events.py)"): 5, (): 4}


def test_shares_are_fractions_of_all_samples_in_descending_order() -> None:
    found = shares({(*LOOP, ENDPOINT): 1, (*LOOP, LIMITS): 2, LOOP: 1, (): 4})
    assert list(found.items())[:2] == [(OTHER, 0.5), ("ours: HTTP limits", 0.25)]
    assert sum(found.values()) == 1


def test_a_flame_graph_omits_the_start_of_the_process_and_narrow_frames() -> None:
    rare = "rare (notify_gateway/slices.py)"
    graph = flame_graph("gateway at 200/s", {(*LOOP, LIMITS): 750, (*LOOP, LIMITS, ENDPOINT): 250, (*LOOP, rare): 1})
    titles = re.findall("<title>(.*?)</title>", graph)
    assert titles == ["gateway at 200/s, 100.0%", f"{LIMITS}, 99.9%", f"{ENDPOINT}, 25.0%"]
    assert NARROWEST > 1 / 1001


def test_frames_that_are_not_below_the_event_loop_stay() -> None:
    assert above_the_loop((*LOOP, LIMITS)) == (LIMITS,)
    assert above_the_loop(("run (threading.py)",)) == ("run (threading.py)",)


def test_statements_are_shown_in_one_line_of_limited_length() -> None:
    insert = "INSERT INTO outbox (id, channel,\n  due_at)\n SELECT * FROM unnest($1::uuid[], coalesce($3, now()))"
    assert one_line(insert) == "INSERT INTO outbox (…) SELECT * FROM unnest(…)"
    assert one_line("UPDATE a SET b = $1 WHERE c IN ($2)") == "UPDATE a SET b = $1 WHERE c IN ($2)"
    nested = "WITH changed AS (\n UPDATE deliveries SET status = $1 WHERE id = ANY($2) RETURNING id\n) SELECT 1"
    assert one_line(nested).startswith(
        "WITH changed AS (UPDATE deliveries SET status = $1 WHERE id = ANY($2) RETURNING"
    )
    select = "SELECT deliveries.id, deliveries.channel, deliveries.status, deliveries.due_at FROM deliveries"
    assert one_line(select) == "SELECT … FROM deliveries"
    assert len(one_line("SELECT " + "x AND " * 50)) == LENGTH


def test_rare_statements_share_a_row() -> None:
    counts = [Counts(f"SELECT {number}", 10.0, 8.0, 20.0) for number in range(SHOWN)]
    figures = summarized([*counts, Counts("a", 1.0, 3.0, 2.0), Counts("b", 3.0, 1.0, 2.0)], notifications=100)
    assert len(figures) == SHOWN + 1
    assert (figures[0].calls, figures[0].milliseconds, figures[0].rows, figures[0].share) == (0.1, 0.8, 2.0, 0.08)
    assert (figures[-1].statement, figures[-1].calls, figures[-1].milliseconds) == ("2 others", 0.04, 1.0)
    assert sum(each.share for each in figures) == pytest.approx(1)


METRICS = """\
# TYPE notify_group_size histogram
notify_group_size_bucket{le="1.0",step="accept"} 4.0
notify_group_size_count{step="accept"} 20.0
notify_group_size_sum{step="accept"} 100.0
notify_group_size_count{step="result messages"} 0.0
notify_group_size_sum{step="result messages"} 0.0
"""


def test_batches_are_those_between_two_readings() -> None:
    after = {("gateway", step): each for step, each in parse(METRICS).items()}
    assert after["gateway", "result messages"] == Batches()
    before = {("gateway", "accept"): Batches(items=40, count=10)}
    [figures] = batch_figures(before, after, notifications=40)
    assert (figures.process, figures.step, figures.items, figures.batches) == ("gateway", "accept", 6.0, 0.25)


def test_exchanges_that_received_nothing_are_left_out() -> None:
    assert message_figures({"a": 10.0, "b": 5.0}, {"a": 30.0, "b": 5.0, "c": 1.0}, 20) == {"a": 1.0, "c": 0.05}


def load(name: str) -> dict[str, Any]:
    return {
        "name": name, "rate": 200.0, "seconds": 10.0,
        "cpu": {
            "notifications": 2000, "accepted": 200.0, "failed": 0, "rate_reached": True,
            "processes": {"gateway": 400.0, "status_writer": 100.0, "epmd": 0.1}, "load_generator": 50.0,
            "other_work": 3.0,
        },
        "statements": [{"statement": "a || b", "calls": 0.5, "milliseconds": 0.2, "rows": 3.0, "share": 1.0}],
        "batches": [{"process": "gateway", "step": "accept", "items": 1.5, "batches": 0.667}],
        "messages": {"notifications": 1.0}, "wal_syncs": 0.25, "wal_sync_milliseconds": 1.5, "most_samples": 4000,
        "samples": {"gateway": 1000, "status_writer": 500},
        "areas": {
            "gateway": {"ours: intake": 0.1, "SQLAlchemy": 0.6, OTHER: 0.3},
            "status_writer": {"ours: result writer": 0.75, OTHER: 0.25},
        },
    }  # fmt: skip


def test_the_tables_show_every_load() -> None:
    results = {
        "measured_at": "2026-01-01T00:00:00", "minutes": 3.0, "machine": {"cores": "2"}, "servers": {}, "settings": {},
        "loads": [load("200/s"), load("the maximum")],
    }  # fmt: skip
    text = tables.profile(results)
    expected = [
        "| **all** | 500 | 500 |", "### Statements at the maximum", "| `a \\|\\| b` | 0.5000 | 0.200 | 3.0 | 100.0 |",
        "took 100 µs per notification", "| gateway: accept | 1.5 | 0.6670 |", "`notifications` 1.000",
        "0.250 times per notification, which took 1.50 ms each time",
        "of 4,000: gateway 1,000",
        "(results/profile/the-maximum.gateway.svg)",
    ]  # fmt: skip
    assert [each for each in expected if each not in text] == []
    assert "epmd" not in text


def test_areas_are_ordered_by_cost_over_all_processes_and_the_rest_comes_last() -> None:
    lines = [line for line in tables.areas(load("200/s")).splitlines() if line.startswith("| ")]
    assert lines[2:] == [
        "| SQLAlchemy | 60.0 |  |",
        "| ours: result writer |  | 75.0 |",
        "| ours: intake | 10.0 |  |",
        f"| {OTHER} | 30.0 | 25.0 |",
    ]
