"""Unpack programs from Debian packages without installing them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from notify_local.console import CannotRun


def unpacked(*packages: str, folder: Path, with_libraries: bool) -> Path:
    """Unpack packages as `unpack` does, or skip the test if they cannot be had."""
    try:
        return unpack(*packages, folder=folder, with_libraries=with_libraries)
    except CannotRun as error:
        pytest.skip(str(error))


def unpack(*packages: str, folder: Path, with_libraries: bool) -> Path:
    """Unpack packages below `folder`, and return the root; `with_libraries` includes dependencies not yet installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CannotRun(f"Unpacking {', '.join(packages)} requires Debian's apt-get and dpkg-deb.")
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True)
    options = ["-qq", "-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={archives}"]
    if with_libraries:
        download = ["apt-get", *options, "--yes", "--no-install-recommends", "--download-only", "install", *packages]
    else:
        download = ["apt-get", *options, "download", *packages]
    done = subprocess.run(download, cwd=archives, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise CannotRun(f"Downloading {', '.join(packages)} failed: {done.stderr}")
    for package in archives.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], check=True)  # noqa: S603, S607 - ours
    return folder / "root"
