"""A Markdown extension: on the site, a link to a file outside `docs/` becomes plain text.

In the repository such links lead to the sources; on the site they would be broken. A target that does not exist is left
alone.
"""  # noqa: INP001 - Zensical imports it by its name

import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

REPOSITORY = Path(__file__).resolve().parents[1]
UP = re.compile(r"^(?:\.\./)+")


class SourceLinks(Treeprocessor):
    """Removes the links and keeps their text."""

    def run(self, root: Element) -> None:
        """Process one page."""
        for link in root.iter("a"):
            target = link.get("href", "").partition("#")[0]
            path = UP.sub("", target)
            if path != target and not (REPOSITORY / "docs" / path).exists() and (REPOSITORY / path).exists():
                link.tag = "span"
                del link.attrib["href"]


class SourceLinksExtension(Extension):
    """Registers `SourceLinks`."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name is Python-Markdown's
        """Add the processor, after those that make the links."""
        md.treeprocessors.register(SourceLinks(md), "source_links", 0)


def makeExtension(**options: Any) -> SourceLinksExtension:  # noqa: ANN401, N802 - the signature is Python-Markdown's
    """Return the extension."""
    return SourceLinksExtension(**options)
