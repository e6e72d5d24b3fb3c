"""The client's wheel works alone, on each supported version of Python that is installed here."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import PROJECT

VERSIONS = ("3.11", "3.12", "3.13")
BIN = Path(sys.executable).parent
CHECK = """
import sys
import notify_client
with notify_client.Client("http://127.0.0.1:1", api_key="k", max_retries=0) as client:
    try:
        client.notifications.create(user_id="1", channels=["email"], message="m")
    except notify_client.ConnectionFailed:
        print(sys.version_info[:2], client)
"""

pytestmark = pytest.mark.timeout(300)


def run(*command: object, **environment: str) -> str:
    """Run a command, and return what it prints; fail with its output unless it succeeds."""
    result = subprocess.run(  # noqa: S603 - ours
        [*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what a release attaches; return the folder."""
    folder = tmp_path_factory.mktemp("dist")
    # Without `install`, which might replace the environment that runs this test.
    run("make", "--silent", "--old-file=install", "--directory", PROJECT, "client", f"DIST={folder}")
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [wheel] = built.glob("*.whl")
    return wheel


def interpreters(version: str) -> Iterator[str]:
    """Yield the interpreters of this version that may be here."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield sys.executable
    yield from map(str, sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python")))
    if found := shutil.which(f"python{version}"):
        yield found


def test_wheel_contains_the_package_its_types_and_the_license(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel)
    names = content.namelist()
    assert "notify_client/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"notify_client"}
    [license_file] = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert content.read(license_file) == (PROJECT / "LICENSE").read_bytes()


def test_source_distribution_contains_what_the_wheel_is_built_from(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "src/notify_client/py.typed"} <= names


@pytest.mark.parametrize("version", VERSIONS)
def test_wheel_installs_alone_and_works(version: str, wheel: Path, tmp_path: Path) -> None:
    interpreter = next(interpreters(version), None)
    if interpreter is None:
        pytest.skip(f"Python {version} is not installed here")
    python = tmp_path / "bin/python"
    run(BIN / "uv", "venv", "--quiet", "--python", interpreter, tmp_path)
    run(BIN / "uv", "pip", "install", "--quiet", "--python", python, wheel)
    installed = run(BIN / "uv", "pip", "list", "--quiet", "--format", "freeze", "--python", python)
    assert not [name for name in installed.split() if name.startswith("notify-") and "gateway-client" not in name]
    assert f"({version.replace('.', ', ')})" in run(python, "-c", CHECK)
    command = tmp_path / "bin/notify"
    without = subprocess.run([command], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    assert (without.returncode, without.stdout) == (1, "")
    follow_hint(python, without.stderr)
    assert run(command, "--version").startswith("notify-gateway-client ")
    assert "send" in run(command, "--help", NO_COLOR="1")
    without = subprocess.run([command, "outbox", "list"], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    follow_hint(python, without.stderr)
    assert "list" in run(command, "outbox", "--help", NO_COLOR="1")


def follow_hint(python: Path, printed: str) -> None:
    """Install the extra as the error says. The client is on no index; pip takes the one that is installed."""
    [extra] = re.findall(r"pip install '(notify-gateway-client\[\w+\])'$", printed)
    run(BIN / "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check", extra)
