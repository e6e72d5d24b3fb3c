"""What the benchmarks' README says is what was measured."""

from support.servers import PROJECT

from benchmarks import tables

RESULTS = PROJECT / "benchmarks" / "results"


def test_every_figure_of_the_readme_comes_from_the_raw_results() -> None:
    text = tables.compare(tables.read(RESULTS / "compare.json"))
    assert text in (PROJECT / "benchmarks" / "README.md").read_text()
