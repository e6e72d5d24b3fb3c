"""The tables of `make bench`, from raw results of two contenders."""

from typing import Any

import pytest

from benchmarks import compare_tables
from benchmarks.contenders.registry import CONTENDERS, selectable
from benchmarks.figures import METHOD, ContenderFigures, RateFigures, TailFigures
from benchmarks.schedule import schedule

OTHER = "BackgroundTasks"


def figures(name: str, round_: int, latency: float, *, rate: float, post: float) -> dict[str, Any]:
    latencies = {"p50": post, "p99": 2 * post, "p99.9": 3 * post}
    one = ContenderFigures(
        name, latency, round_, end_to_end=rate, cpu={"api": 1e6 / rate}, memory={"api": 80.0}, tried=[(rate, True)]
    )
    if latency:
        one.at["200"] = RateFigures(latencies, latencies, {"api": 500.0}, accepted=400, left=0)
        one.tail = TailFigures(0.7 * rate, 1000, [10.0 * post] * 11, 1000, [5.0 * post] * 11)
    else:
        one.accepted = 2 * rate
    return one.as_json()


@pytest.fixture
def results() -> dict[str, Any]:
    configuration = {
        each.name: {
            "switches": each.switches,
            "guarantees": each.guarantees,
            "documentation": list(each.documentation),
        }
        for each in CONTENDERS
    }
    return {
        "method": METHOD, "measured_at": "2026-12-01T00:00:00+00:00", "minutes": 40.0, "machine": {"cores": 2},
        "servers": {"RabbitMQ": "3.10.8"}, "rounds": 3, "step_seconds": 2.5, "rate_seconds": 4.0, "tail_seconds": 6.0,
        "configuration": configuration, "failed": {},
        "lost": {OTHER: {"accepted": 500, "lost": 29, "seconds": 45}},
        "figures": [
            figures(name, round_, latency, rate=rate + round_, post=post)
            for round_ in (1, 2, 3)
            for latency in (0.0, 0.2)
            for name, rate, post in (("this service", 3000.0, 7.0), (OTHER, 600.0, 2.0))
        ],
    }  # fmt: skip


def row(text: str, first_cell: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {first_cell} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(results: dict[str, Any], title: str) -> str:
    [found] = [part for part in compare_tables.compare(results).split("### ") if part.startswith(title)]
    return found


def test_throughput_is_the_median_with_the_range(results: dict[str, Any]) -> None:
    cells = row(section(results, "Throughput"), OTHER)
    assert cells[1:4] == ["1,204 (1,202 to 1,206)", "602 (601 to 603)", "602 (601 to 603)"]
    assert cells[-1] == "29 of 500"


def test_peak_memory_names_the_processes_of_each_configuration(results: dict[str, Any]) -> None:
    [*_, other] = results["figures"]
    other["memory"] = {"api": 70.0, "worker 2": 60.0}
    assert row(section(results, "Throughput"), OTHER)[4] == "api 80, worker 2 60"


def test_ratios_are_published_round_by_round(results: dict[str, Any]) -> None:
    assert row(section(results, "This service compared"), OTHER)[1] == "4.99, 4.99, 4.98"


def test_an_alternative_that_is_better_is_named(results: dict[str, Any]) -> None:
    better = section(results, "Where an alternative is better")
    assert row(better, "POST p50 at 200/s, ms")[1:] == ["7.0 (7.0 to 7.0)", "BackgroundTasks 2.0 (2.0 to 2.0)"]
    assert "end to end" not in better


def test_an_earlier_commit_is_compared_but_is_no_alternative(results: dict[str, Any]) -> None:
    earlier = "this service at 083b5a3"
    results["configuration"][earlier] = results["configuration"][OTHER]
    results["figures"] += [
        figures(earlier, round_, latency, rate=1500.0 + round_, post=1.0)
        for round_ in (1, 2, 3)
        for latency in (0.0, 0.2)
    ]
    text = section(results, "An earlier commit")
    assert row(text, "end to end/s, latency 0 s")[1:3] == [
        "1,502.0 (1,501.0 to 1,503.0)",
        "3,002.0 (3,001.0 to 3,003.0)",
    ]
    assert row(text, "POST p50 at 200/s, ms")[-1] == "7.00, 7.00, 7.00"
    assert earlier not in section(results, "Where an alternative is better")
    assert earlier not in section(results, "This service compared")


def test_tails_of_all_rounds_are_pooled(results: dict[str, Any]) -> None:
    assert row(section(results, "Tail latency"), OTHER)[2:] == ["20.0", "20.0", "10.0", "10.0"]


def test_goals_compare_the_medians(results: dict[str, Any]) -> None:
    text = section(results, "Goals")
    assert row(text, "end to end, latency 0 s")[1:] == ["3,002.00 /s", "≥ 4,500 /s", "≥ 6,500 /s", "**not met**"]
    assert row(text, "end to end compared with BackgroundTasks, latency 0.2 s")[1] == "4.99 times"
    assert row(text, "POST p99.9 at 70 %")[1] == "70.00 ms"


def test_a_search_without_an_end_is_marked(results: dict[str, Any]) -> None:
    results["figures"][0]["search_ended"] = False
    assert "or more (the search ran out of time)" in section(results, "Throughput")


def test_a_contender_that_failed_is_named(results: dict[str, Any]) -> None:
    results["failed"] = {"Celery": "Celery accepted 98 notifications and has sent 69"}
    assert "**Celery is missing**" in compare_tables.compare(results)


def test_results_of_another_method_are_not_shown(results: dict[str, Any]) -> None:
    del results["method"]
    assert "Nothing has been measured" in compare_tables.compare(results)


def test_each_contender_names_its_documentation_and_its_guarantees(results: dict[str, Any]) -> None:
    text = section(results, "What is switched on and off")
    for each in CONTENDERS:
        assert each.documentation
        assert f"- **{each.name}**: " in text
    assert len({each.key for each in selectable()}) == len(selectable())


def test_no_contender_is_always_measured_first() -> None:
    order = schedule(CONTENDERS, 3)
    firsts = [next(each.key for each, _, round_, _ in order if round_ == number) for number in (1, 2, 3)]
    assert len(set(firsts)) == 3
    assert len(order) == 3 * 2 * len(CONTENDERS)
