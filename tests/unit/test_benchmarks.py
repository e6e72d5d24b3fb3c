"""The figures in the benchmarks' README must match the raw results."""

from collections.abc import Callable

import pytest
from support.servers import PROJECT

from benchmarks import compare_tables, tables
from benchmarks.profile import tables as profile_tables
from benchmarks.scale import tables as scale_tables

FOLDER = PROJECT / "benchmarks"


@pytest.mark.parametrize(
    ("results", "table"),
    [
        ("compare", compare_tables.compare),
        ("scale", scale_tables.scale),
        ("events", tables.events),
        ("profile", profile_tables.profile),
    ],
)
def test_readme_figures_match_the_raw_results(results: str, table: Callable[[tables.Json], str]) -> None:
    text = table(tables.read(FOLDER / "results" / f"{results}.json"))
    assert f"<!-- {results}: begin -->\n{text}<!-- {results}: end -->" in (FOLDER / "README.md").read_text()
