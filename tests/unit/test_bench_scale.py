"""The figures and tables of `make bench-scale` that are computed from raw results."""

from typing import Any

import pytest

from benchmarks.scale.load_figures import compared, extra_attempt, late_growth
from benchmarks.scale.load_tables import LOAD_SECTIONS

QUANTILES = {"p50": 2.0, "p99": 8.0, "p99.9": 9.0}


def minute(*, sent: float, gateway: float, cpu: float = 500.0) -> dict[str, Any]:
    return {
        "accepted": sent, "sent": sent, "failed": 0, "post": QUANTILES, "cpu": cpu,
        "memory": {"gateway": gateway, "status_writer": 60.0}, "dead_rows": 10, "broker_disk": 5.0,
    }  # fmt: skip


def test_the_last_minutes_are_compared_with_the_first_and_memory_grows_per_hour() -> None:
    parts = [minute(sent=1000 - number, gateway=80 + number / 10) for number in range(60)]
    found = compared(parts)
    assert found["sent"] == pytest.approx(943 / 998)
    assert found["cpu"] == 1
    assert found["memory_per_hour"] == pytest.approx({"gateway": 6.0, "status_writer": 0.0})


def test_late_growth_leaves_out_the_first_half() -> None:
    sizes = [70 + min(number, 20) for number in range(40)]
    assert late_growth([minute(sent=1000, gateway=size) for size in sizes])["gateway"] == pytest.approx(0)
    rising = [minute(sent=1000, gateway=90 + number / 30) for number in range(2)]
    assert late_growth(rising) == pytest.approx({"gateway": 2.0, "status_writer": 0.0})


def test_an_extra_attempt_is_what_retries_cost_more_than_first_attempts() -> None:
    def figures(attempts: int, cpu: float) -> dict[str, Any]:
        return {"deliveries": 1000, "attempts": attempts, "cpu": {"gateway": cpu / 2, "telegram_sender": cpu / 2}}

    assert extra_attempt({"figures": [figures(1000, 500), figures(1400, 640)]}) == pytest.approx((350, 0.7))


def cpu(total: float) -> dict[str, float]:
    return {"gateway": total, "load generator": 30.0}


SAMPLES: dict[str, dict[str, Any]] = {
    "partitions": {
        "stored": 10_000_000, "tenants": 1000, "list_rate": 50.0, "write_rate": 500.0,
        "figures": [
            {
                "partitions": count, "writes": {"post": QUANTILES, "cpu": cpu(total), "failed": 0},
                "lists": {"one user's": {"list": QUANTILES, "post": QUANTILES, "failed": 1}},
            }
            for count, total in ((10, 500.0), (120, 540.0))
        ],
    },
    "messages": {
        "rate": 100.0, "seconds": 20.0,
        "figures": [
            {
                "name": name, "bytes": size, "post": QUANTILES, "to_sent": QUANTILES, "cpu": cpu(total),
                "stored_kib": 2.0, "accepted": 1000.0, "failed": 0, "memory": {"gateway": 90.0},
            }
            for name, size, total in (("short", 67, 500.0), ("long", 82_016, 1500.0))
        ],
    },
    "retries": {
        "rate": 200.0, "channels": 3, "max_attempts": 4,
        "figures": [
            {
                "probability": probability, "deliveries": 1000, "attempts": attempts, "failed": 0,
                "cpu": {"gateway": total}, "first_attempt": QUANTILES, "final": QUANTILES,
            }
            for probability, attempts, total in ((0.0, 1000, 500.0), (0.3, 1400, 640.0))
        ],
    },
    "outage": {
        "rate": 1000.0, "seconds": 600.0, "waiting": 1_000_000, "left": 500, "drain_seconds": 400.0, "sent": 3600.0,
        "senders": 2, "latency": 0.2, "concurrency": 1000, "before": {"broker_disk": 10.0, "database_disk": 20.0},
        **{
            part: {
                "accepted": 600_000, "failed": 0, "post": QUANTILES, "waiting": 600_000,
                "memory": {"rabbitmq": 400.0, "gateway": 90.0}, "broker_disk": 210.0, "database_disk": 900.0,
            }
            for part in ("away", "draining")
        },
    },
    "soak": {
        "rate": 1600.0, "minutes": [minute(sent=1600, gateway=80) for _ in range(60)],
        "drops": [{"minute": 6, "days": 36, "partitions": 9, "gone_by_minute": None}],
        "compared": {"sent": 0.998, "cpu": 1.0, "memory_per_hour": {"gateway": 0.5, "status_writer": -0.1}},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("partitions", ["1.08 times the CPU", "| 2.0 / 8.0 |", "2 requests failed", "≤ 1.05"]),
        ("messages", ["80 KiB", "3.0 times the CPU"]),
        ("retries", ["350 µs", "0.70", "met"]),
        ("outage", ["3,600 a second", "| 400 | 200 |", "≥ 5,000"]),
        ("soak", ["99.80 %", "goal met", "were not dropped", "gateway +0.5", "the same in the second half"]),
    ],
)
def test_each_measurement_has_its_figures_a_sentence_and_goals(name: str, expected: list[str]) -> None:
    _, section = LOAD_SECTIONS[name]
    text = section(SAMPLES[name])
    assert [each for each in expected if each not in text] == []


def test_a_backlog_that_was_not_drained_is_not_hidden() -> None:
    _, section = LOAD_SECTIONS["outage"]
    assert "It was not drained: 50,000 were left." in section({**SAMPLES["outage"], "left": 50_000})
