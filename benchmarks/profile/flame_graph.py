"""Flame graphs as SVG, drawn from the samples that the tables are computed from."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

from benchmarks.profile.stacks import AREAS, OTHER, Stacks, above_the_loop, frame_area

WIDTH, ROW = 1200.0, 17  # pixels
CHARACTER = 6.2  # pixels
FEWEST_LETTERS = 3  # of a name that is shown
NARROWEST = 0.002  # fraction of the width; narrower frames are left out, so that the file stays small
STYLE = "text{font:11px monospace;fill:#222}rect{stroke:#fff;stroke-width:.5}"


@dataclass
class _Node:
    """A function, called by the functions that lead to it."""

    count: int = 0
    children: dict[str, "_Node"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Box:
    name: str
    left: float
    width: float
    depth: int


def flame_graph(title: str, stacks: Stacks) -> str:
    """Return an SVG in which a frame is as wide as its share of the samples, with its callees below it."""
    merged: Counter[tuple[str, ...]] = Counter()
    for stack, count in stacks.items():
        merged[above_the_loop(stack)] += count
    root = _tree(merged)
    boxes = list(_boxes(title, root, 0.0, WIDTH / max(root.count, 1), 0))
    height = ROW * (1 + max((box.depth for box in boxes), default=0))
    drawn = "\n".join(_draw(box) for box in boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:.0f}" height="{height}" '
        f'viewBox="0 0 {WIDTH:.0f} {height}">\n<style>{STYLE}</style>\n{drawn}\n</svg>\n'
    )


def _tree(stacks: Stacks) -> _Node:
    root = _Node()
    for stack, count in stacks.items():
        node = root
        node.count += count
        for frame in stack:
            node = node.children.setdefault(frame, _Node())
            node.count += count
    return root


def _boxes(name: str, node: _Node, left: float, scale: float, depth: int) -> Iterator[_Box]:
    width = node.count * scale
    if width < NARROWEST * WIDTH:
        return
    yield _Box(name, left, width, depth)
    for child, below in sorted(node.children.items()):
        yield from _boxes(child, below, left, scale, depth + 1)
        left += below.count * scale


def _draw(box: _Box) -> str:
    name = escape(box.name, quote=False)
    letters = int(box.width / CHARACTER) - 1
    short = box.name if len(box.name) <= letters else box.name[: letters - 1] + "…"
    top = box.depth * ROW
    text = f'<text x="{box.left + 3:.1f}" y="{top + 12}">{escape(short, quote=False)}</text>'
    rectangle = f'<rect x="{box.left:.1f}" y="{top}" width="{box.width:.1f}" height="{ROW - 1}" fill="{_colour(box)}"/>'
    title = f"<title>{name}, {box.width / WIDTH:.1%}</title>"
    return f"<g>{title}{rectangle}{text if letters >= FEWEST_LETTERS else ''}</g>"


def _colour(box: _Box) -> str:
    """Return the colour of the frame's area, or grey if it has none."""
    area = frame_area(box.name) or OTHER
    # The golden angle keeps the hues of any number of areas apart.
    return "#ddd" if area == OTHER else f"hsl({list(AREAS).index(area) * 137.5 % 360:.0f},60%,75%)"
