"""Generate the tables in `benchmarks/README.md` from the raw results alone: what all of them share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LOAD_GENERATOR = "load generator"
README = Path(__file__).with_name("README.md")


def write(section: str, text: str) -> None:
    """Replace a generated section of the README."""
    begin, end = f"<!-- {section}: begin -->\n", f"<!-- {section}: end -->"
    before, begun, rest = README.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{README} has no generated section {section!r}")
    README.write_text(before + begin + text + end + after)


def events(results: Json) -> str:
    """Format the event delay and the cost of subscribers as Markdown."""
    delay = results["delay"]
    rows = [
        [f"{name}, {each['rate']:g} requests/s", *(f"{each['cores'][case][name]:.1f}" for case in ("without", "idle"))]
        for each in results["costs"]
        for name in each["cores"]["without"]
    ]
    return (
        f"{measured_on(results)}\n\nAt {delay['rate']:g} requests a second, a subscriber received {delay['received']} "
        f"of {delay['posted']} `sent` events: {delay['p50']:.1f} ms after the commit (p50), {delay['p99']:.1f} ms "
        f"(p99) and {delay['longest']:.1f} ms at most.\n\n"
    ) + table(["% of a core", "no subscribers", f"{results['costs'][0]['subscribers']} idle subscribers"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table in which every column but the first is right-aligned."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def measured_on(results: Json) -> str:
    """Return when, in how many minutes and on what machine the results were measured."""
    machine = ", ".join(f"{name} {value}" for name, value in {**results["machine"], **results["servers"]}.items())
    return f"Measured {results['measured_at'][:10]} in {results['minutes']:.0f} minutes on: {machine}."


def listed(by_process: Mapping[str, float]) -> str:
    """Return the names and values as a comma-separated list, without decimals."""
    return ", ".join(f"{name} {value:.0f}" for name, value in by_process.items())


def goals(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of figures with their required values and goals."""
    return table(["figure", "measured", "required", "goal", ""], rows)


def at_least(name: str, measured: float, required: float, goal: float, unit: str) -> list[str]:
    """Return the row of a figure that must be large."""
    verdict = "goal met" if measured >= goal else "met" if measured >= required else "**not met**"
    return [name, f"{measured:,.2f} {unit}", f"≥ {required:,g} {unit}", f"≥ {goal:,g} {unit}", verdict]


def at_most(name: str, measured: float, required: float, goal: float, unit: str) -> list[str]:
    """Return the row of a figure that must be small."""
    verdict = "goal met" if measured <= goal else "met" if measured <= required else "**not met**"
    return [name, f"{measured:,.2f} {unit}", f"≤ {required:,g} {unit}", f"≤ {goal:,g} {unit}", verdict]


def read(file: Path) -> Json:
    """Read raw results."""
    results: Json = json.loads(file.read_text())
    return results
