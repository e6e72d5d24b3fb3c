"""The folders of the project."""

from pathlib import Path

PROJECT = Path(__file__).parents[1]
PRODUCT_PYTHON = PROJECT / ".venv" / "bin" / "python"
RESULTS = PROJECT / "benchmarks" / "results"
