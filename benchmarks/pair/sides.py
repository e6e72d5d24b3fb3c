"""The two sides of a comparison: a commit in its own checkout, and the working tree."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Request
from benchmarks.pair.figures import BASE, WORKING_TREE
from benchmarks.paths import PROJECT
from benchmarks.progress import say
from benchmarks.steps import post

V1_BODY = json.dumps({"user_id": "123", "message": "Your code: 11111", "channels": ["telegram"]})


@dataclass(frozen=True)
class Side:
    """A checkout with its virtual environment."""

    name: str
    path: Path
    commit: str
    v1: bool = False
    """True if notifications are posted to `/v1`, otherwise to the URL that every commit has."""

    @property
    def request(self) -> Request:
        """The request that posts a notification. Both forms have the same effect."""
        if self.v1:
            return post("/v1/notifications", body=V1_BODY)
        return post("/api/notifications")

    @property
    def python(self) -> Path:
        """The interpreter of this side's virtual environment."""
        return self.path / ".venv" / "bin" / "python"

    @property
    def label(self) -> str:
        """The name of the side without spaces, for use in file names."""
        return self.name.replace(" ", "-")


def working_tree(*, v1: bool) -> Side:
    """Return the working tree, which `make` has installed already."""
    return Side(WORKING_TREE, PROJECT, _git("rev-parse", "HEAD"), v1)


def base(revision: str, folder: Path) -> Side:
    """Check `revision` out below `folder` and install it; both are kept for the next comparison."""
    commit = _commit(revision)
    checkout = folder / commit
    if not (checkout / ".git").exists():
        say(f"Checking {commit[:12]} out into {checkout} …")
        _git("clone", "--quiet", "--shared", "--no-checkout", str(PROJECT), str(checkout))
    _git("-C", str(checkout), "checkout", "--quiet", "--force", "--detach", commit)
    say(f"Installing {commit[:12]} (slow the first time only) …")
    log = folder / "install.log"
    with log.open("wb") as output:
        command = ["make", "--directory", str(checkout), "install"]
        done = subprocess.run(command, env=clean_environment(), stdout=output, stderr=output, check=False)
    if done.returncode:
        raise SystemExit(f"`make install` failed in {checkout}:\n{log.read_text()}")
    return Side(BASE, checkout, commit)


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that `make` and Python would pass on from the working tree."""
    not_inherited = ("MAKE", "MFLAGS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(not_inherited)}


def tree(side: Side) -> str:
    """Return git's tree id for the current files, including uncommitted changes."""
    with tempfile.TemporaryDirectory() as name:
        # A temporary index leaves the user's staged changes alone.
        environment = {"GIT_INDEX_FILE": str(Path(name) / "index")}
        _git("-C", str(side.path), "add", "--all", environment=environment)
        return _git("-C", str(side.path), "write-tree", environment=environment)


def _commit(revision: str) -> str:
    if not revision:
        raise SystemExit("Name the commit to compare the working tree with: make bench-pair BASE=<commit>")
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"BASE={revision} is not a commit of this repository.")
    return found.stdout.split()[-1]


def _git(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    command = ["git", *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed:\n{done.stderr}")
    return done.stdout.strip()
