"""The two sides of a comparison: a commit in its own checkout, and the working tree."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkouts import Checkout, check_out, git
from benchmarks.load import Request
from benchmarks.pair.figures import BASE, WORKING_TREE
from benchmarks.paths import PROJECT
from benchmarks.steps import post

V1_BODY = json.dumps({"user_id": "123", "message": "Your code: 11111", "channels": ["telegram"]})


@dataclass(frozen=True)
class Side:
    """A checkout that is measured."""

    name: str
    checkout: Checkout
    v1: bool = False
    """True if notifications are posted to `/v1`, otherwise to the URL that every commit has."""

    @property
    def request(self) -> Request:
        """The request that posts a notification. Both forms have the same effect."""
        if self.v1:
            return post("/v1/notifications", body=V1_BODY)
        return post("/api/notifications")

    @property
    def label(self) -> str:
        """The name of the side without spaces, for use in file names."""
        return self.name.replace(" ", "-")


def working_tree(*, v1: bool) -> Side:
    """Return the working tree, which `make` has installed already."""
    return Side(WORKING_TREE, Checkout(PROJECT, git("rev-parse", "HEAD")), v1)


def base(revision: str) -> Side:
    """Return the commit to compare the working tree with."""
    if not revision:
        raise SystemExit("Name the commit to compare the working tree with: make bench-pair BASE=<commit>")
    return Side(BASE, check_out(revision))


def tree(side: Side) -> str:
    """Return git's tree id for the current files, including uncommitted changes."""
    with tempfile.TemporaryDirectory() as name:
        # A temporary index leaves the user's staged changes alone.
        environment = {"GIT_INDEX_FILE": str(Path(name) / "index")}
        git("-C", str(side.checkout.path), "add", "--all", environment=environment)
        return git("-C", str(side.checkout.path), "write-tree", environment=environment)
