"""Links between documents: `make docs` checks those within the site, and this module checks all others."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from support.servers import PROJECT

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],  # noqa: S607 - git is found on PATH
    cwd=PROJECT, capture_output=True, text=True, check=False,
).stdout.split()  # fmt: skip
DOCUMENTS = [PROJECT / name for name in LISTED if (PROJECT / name).exists()] or sorted(PROJECT.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"^[a-z]+:")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Return the heading anchors that a Git host and the documentation site generate."""
    without_code = re.sub(r"^(```|~~~).*?^\1", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(without_code)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_relative_link_points_to_an_existing_file_and_heading(document: Path) -> None:
    broken = []
    for link in LINK.findall(CODE.sub("", document.read_text())):
        if EXTERNAL.match(link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_example_in_python_compiles(document: Path) -> None:
    for example in EXAMPLE.findall(document.read_text()):
        compile(example, str(document), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def pages(navigation: list[dict[str, Any]]) -> list[str]:
    """Return the pages listed in the documentation site's navigation."""
    found: list[str] = []
    for entry in navigation:
        for target in entry.values():
            found += pages(target) if isinstance(target, list) else [target]
    return found


def test_site_navigation_lists_every_page_once() -> None:
    configuration = tomllib.loads((PROJECT / "zensical.toml").read_text())
    written = {path.name for path in (PROJECT / "docs").glob("*.md")} | {"decisions/README.md"}
    assert sorted(pages(configuration["project"]["nav"])) == sorted(written)


def test_decision_index_links_to_every_record() -> None:
    folder = PROJECT / "docs/decisions"
    listed = set(LINK.findall((folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("[0-9]*.md")}
