"""What the benchmarks' README says is what was measured."""

from collections.abc import Callable

import pytest
from support.servers import PROJECT

from benchmarks import tables

FOLDER = PROJECT / "benchmarks"


@pytest.mark.parametrize(
    ("results", "told"), [("compare", tables.compare), ("scale", tables.scale), ("events", tables.events)]
)
def test_readme_figures_match_the_raw_results(results: str, told: Callable[[tables.Json], str]) -> None:
    text = told(tables.read(FOLDER / "results" / f"{results}.json"))
    assert f"<!-- {results}: begin -->\n{text}<!-- {results}: end -->" in (FOLDER / "README.md").read_text()
