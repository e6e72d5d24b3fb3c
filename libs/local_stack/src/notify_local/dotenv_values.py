"""Reads values from a `.env` file as Docker Compose does, without its packages."""

import re
from collections.abc import Collection

ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?(?P<name>\w+)[ \t]*=[ \t]*(?P<value>.*?)[ \t\r]*")
SINGLE_QUOTED = re.compile(r"'(?P<text>[^'\\]*)'(?:\s+#.*)?")
DOUBLE_QUOTED = re.compile(r'"(?P<text>(?:[^"\\$]|\\n)*)"(?:\s+#.*)?')
UNQUOTED = re.compile(r"""(?P<text>[^'"#].*?)(?:\s+#.*)?""")


class UnclearValue(ValueError):
    """The value of this variable has quotes or escapes that only Docker Compose can read."""


def dotenv_values(content: str, names: Collection[str]) -> dict[str, str]:
    """Return the values of these variables that are not empty. The last assignment of a variable counts."""
    lines = map(ASSIGNMENT.fullmatch, content.split("\n"))
    written = {match["name"]: match["value"] for match in lines if match}
    return {name: _value(name, written[name]) for name in names if written.get(name)}


def _value(name: str, written: str) -> str:
    if match := SINGLE_QUOTED.fullmatch(written):
        return match["text"]
    if match := DOUBLE_QUOTED.fullmatch(written):
        return match["text"].replace("\\n", "\n")
    if (match := UNQUOTED.fullmatch(written)) and "$" not in match["text"]:
        return match["text"]
    raise UnclearValue(name)
