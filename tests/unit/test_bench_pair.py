from dataclasses import replace

import pytest

from benchmarks.pair import report
from benchmarks.pair.figures import BASE, WORKING_TREE, CpuFigures, LatencyFigures, Run


def run(
    pair: int, side: str, *, gateway: float, tree: str = "t1", rate_reached: bool = True, other_work: float = 2
) -> Run:
    cpu = CpuFigures(
        notifications=100,
        accepted=1500 if rate_reached else 900,
        failed=0,
        rate_reached=rate_reached,
        processes={"gateway": gateway, "postgres": 50, "epmd": 0.1},
        load_generator=30,
        other_work=2,
    )
    latency = LatencyFigures(post={"p50": 5, "p99": 10}, to_sent={"p50": 8, "p99": 16}, failed=0, other_work=other_work)
    return Run(pair, side, "c1", tree, 1500, cpu, latency)


def row(runs: list[Run], name: str) -> report.Row:
    [found] = [each for each in report.rows(runs) if each.figure.name.strip() == name]
    return found


def test_ratios_are_computed_pair_by_pair() -> None:
    # The machine is only half as fast during the second pair, but that must not affect the ratios.
    runs = [
        run(1, BASE, gateway=100), run(1, WORKING_TREE, gateway=90),
        run(2, WORKING_TREE, gateway=180), run(2, BASE, gateway=200),
    ]  # fmt: skip
    gateway = row(runs, "gateway")
    assert gateway.base == report.Spread(150, 100, 200)
    assert gateway.tree == report.Spread(135, 90, 180)
    assert gateway.ratio == report.Spread(0.9, 0.9, 0.9)


def test_incomplete_pair_is_left_out() -> None:
    runs = [run(1, BASE, gateway=100), run(1, WORKING_TREE, gateway=100), run(2, WORKING_TREE, gateway=500)]
    assert row(runs, "gateway").tree == report.Spread(100, 100, 100)


def test_process_on_only_one_side_gets_a_row_without_a_ratio() -> None:
    renamed = run(1, WORKING_TREE, gateway=0)
    renamed = replace(renamed, cpu=replace(renamed.cpu, processes={"api": 100, "postgres": 50}))
    runs = [run(1, BASE, gateway=100), renamed]
    assert row(runs, "gateway").ratio is None
    assert row(runs, "api").base is None
    assert row(runs, "api").tree == report.Spread(100, 100, 100)


def test_processes_with_negligible_cpu_time_share_a_row() -> None:
    names = [
        each.figure.name.strip() for each in report.rows([run(1, side, gateway=100) for side in (BASE, WORKING_TREE)])
    ]
    assert "epmd" not in names
    assert report.OTHERS in names


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (run(1, WORKING_TREE, gateway=100), "every difference is noise"),
        (run(1, WORKING_TREE, gateway=100, tree="t2", rate_reached=False), "The rate was not reached"),
        (run(1, WORKING_TREE, gateway=100, tree="t2", other_work=60), "other programs used 60 % of a core"),
    ],
)
def test_report_states_the_limits_of_the_comparison(second: Run, expected: str) -> None:
    [remark] = report.remarks([run(1, BASE, gateway=100), second])
    assert expected in remark


def test_working_tree_that_changed_between_pairs_is_reported() -> None:
    runs = [run(1, BASE, gateway=1), run(1, WORKING_TREE, gateway=1), run(2, WORKING_TREE, gateway=1, tree="t2")]
    assert "changed while it was measured" in report.remarks(runs)[0]
