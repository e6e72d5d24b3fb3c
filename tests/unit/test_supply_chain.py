"""Test the checks of SBOMs, the file of a release and the workflows. `make sbom` itself needs tools of its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.servers import PROJECT

from supply_chain.release_images import pinned
from supply_chain.sbom import locked_packages, missing_packages

COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))
IMAGES = sorted(folder.parent.name for folder in PROJECT.glob("services/*/Dockerfile"))
LOCK = """\
click==8.5.1 \\
    --hash=sha256:8bb5376d \\
    # via uvicorn
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:08695f5c
typing_extensions==4.15.0 \\
    --hash=sha256:0cea4817
"""


def workflow(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def test_sbom_without_a_locked_package_or_with_another_version_is_incomplete() -> None:
    listed = [{"name": "click", "version": "8.5.1"}, {"name": "typing-extensions", "version": "4.15.0"}]
    assert missing_packages(LOCK, json.dumps({"components": listed})) == {"colorama==0.4.6"}
    listed = [{"name": "Colorama", "version": "0.4.6"}, {"name": "click", "version": "8.5.0"}, listed[1]]
    assert missing_packages(LOCK, json.dumps({"components": listed})) == {"click==8.5.1"}


@pytest.mark.parametrize("service", IMAGES)
def test_every_package_of_a_lock_is_found(service: str) -> None:
    lock = (PROJECT / "services" / service / "requirements.lock").read_text()
    requirements = [line for line in lock.splitlines() if line and line[0] not in " #"]
    assert len(locked_packages(lock)) == len(requirements) > 10


def test_a_release_names_every_image_by_its_digest() -> None:
    published = {service: f"registry/{service}@sha256:own" for service in IMAGES}
    written = pinned(COMPOSE, published, lambda image: f"sha256:of-{image}")
    services = yaml.safe_load(written)["services"]
    assert set(services) == set(COMPOSE["services"]) - {"edge"}
    assert services["postgres"] == {"image": f"{COMPOSE['services']['postgres']['image']}@sha256:of-postgres:17"}
    assert services["migrate"] == services["gateway"] == {"image": "registry/gateway@sha256:own"}
    assert all(services[service]["image"] == published[service] for service in IMAGES)
    assert all("@sha256:" in service["image"] for service in services.values())


@pytest.mark.parametrize("name", ["images", "release"])
def test_workflow_builds_every_image_from_the_only_base(name: str) -> None:
    jobs = workflow(PROJECT / f".github/workflows/{name}.yml")["jobs"]
    assert sorted(jobs["image"]["strategy"]["matrix"]["service"]) == IMAGES
    base = workflow(PROJECT / ".github/workflows/release.yml")["env"]["BASE"]
    for service in IMAGES:
        dockerfile = (PROJECT / "services" / service / "Dockerfile").read_text()
        assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {base}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_least_permissions_and_pinned_actions(path: Path) -> None:
    content = workflow(path)
    assert content["permissions"] == {}
    for job in content["jobs"].values():
        assert "permissions" in job
        assert "timeout-minutes" in job
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", f"none@{'0' * 40}"))
    written = {line.strip() for line in path.read_text().splitlines() if "write" in line and ": write" in line}
    allowed = {"packages", "id-token", "attestations", "contents"} if path.stem == "release" else set()
    assert {line.partition(":")[0] for line in written} == allowed
