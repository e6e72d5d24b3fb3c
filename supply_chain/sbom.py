"""`make sbom`: write a CycloneDX SBOM for each image, and check that it lists every locked package.

The SBOM has the Python packages of the image, of all platforms. It does not have the packages of the base image.
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / "sbom"
LOCKED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)", re.MULTILINE)


def main() -> None:
    """Write all SBOMs at the same time, because each takes seconds of CPU time."""
    FOLDER.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as threads:
        for report in threads.map(_write, sorted(PROJECT.glob("services/*/requirements.lock"))):
            print(report)


def locked_packages(lock: str) -> set[str]:
    """Return each locked package as `name==version`."""
    return {f"{_normalized(match['name'])}=={match['version']}" for match in LOCKED.finditer(lock)}


def missing_packages(lock: str, sbom: str) -> set[str]:
    """Return the locked packages that the SBOM lacks."""
    listed = {f"{_normalized(each['name'])}=={each.get('version')}" for each in json.loads(sbom)["components"]}
    return locked_packages(lock) - listed


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _write(lock: Path) -> str:
    """Write the SBOM of one service, and return a report."""
    file = FOLDER / f"{lock.parent.name}.cdx.json"
    program = Path(sys.executable).with_name("cyclonedx-py")
    main_component = ("--pyproject", lock.with_name("pyproject.toml"), "--mc-type", "application")
    output = ("--output-reproducible", "--output-format", "JSON", "--output-file", file)
    done = subprocess.run(
        [program, "requirements", *main_component, *output, lock], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{lock}: {done.stderr}")
    content = lock.read_text(encoding="utf-8")
    if missing := missing_packages(content, file.read_text(encoding="utf-8")):
        sys.exit(f"{file} lacks {', '.join(sorted(missing))}")
    return f"{file.relative_to(PROJECT)}: {len(locked_packages(content))} packages"


if __name__ == "__main__":
    main()
