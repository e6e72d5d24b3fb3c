"""Earlier commits of this repository, checked out and installed below `.local/`."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paths import PROJECT
from benchmarks.progress import say

FOLDER = PROJECT / ".local" / "bench-pair"


@dataclass(frozen=True)
class Checkout:
    """A checkout with its virtual environment."""

    path: Path
    commit: str

    @property
    def python(self) -> Path:
        """The interpreter of the virtual environment."""
        return self.path / ".venv" / "bin" / "python"


def check_out(revision: str) -> Checkout:
    """Check `revision` out and install it; both are kept for the next time."""
    commit = _commit(revision)
    path = FOLDER / commit
    if not (path / ".git").exists():
        say(f"Checking {commit[:12]} out into {path} …")
        git("clone", "--quiet", "--shared", "--no-checkout", str(PROJECT), str(path))
    git("-C", str(path), "checkout", "--quiet", "--force", "--detach", commit)
    say(f"Installing {commit[:12]} (slow the first time only) …")
    log = FOLDER / "install.log"
    with log.open("wb") as output:
        command = ["make", "--directory", str(path), "install"]
        done = subprocess.run(command, env=clean_environment(), stdout=output, stderr=output, check=False)
    if done.returncode:
        raise SystemExit(f"`make install` failed in {path}:\n{log.read_text()}")
    return Checkout(path, commit)


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that `make` and Python would pass on from the working tree."""
    not_inherited = ("MAKE", "MFLAGS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(not_inherited)}


def git(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run git in this repository and return its output; exit if it fails."""
    command = ["git", *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed:\n{done.stderr}")
    return done.stdout.strip()


def _commit(revision: str) -> str:
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{revision} is not a commit of this repository.")
    return found.stdout.split()[-1]
