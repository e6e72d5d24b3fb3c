"""The container of RabbitMQ refuses passwords that it cannot use. The tests of the containers show that it starts."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.servers import PROJECT

FOLDER = PROJECT / "deploy/rabbitmq"
PASSWORDS = sorted(set(re.findall(r"RABBITMQ_\w+_PASSWORD", (FOLDER / "definitions.json").read_text())))


def start_rabbitmq(**environment: str) -> str:
    """Return why RabbitMQ does not start."""
    done = subprocess.run(  # noqa: S603 - ours
        ["bash", FOLDER / "start.sh"],  # noqa: S607 - found on PATH
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("allow_insecure", ["false", "0", ""])
def test_rabbitmq_does_not_start_with_example_passwords(allow_insecure: str, tmp_path: Path) -> None:
    (tmp_path / "example").write_text("change-me-please\n")
    (tmp_path / "secret").write_text("secret\n")
    refusal = start_rabbitmq(**dict.fromkeys(PASSWORDS, "change-me-please"), ALLOW_INSECURE=allow_insecure)
    assert sorted(re.findall("RABBITMQ_[A-Z_]+", refusal)) == PASSWORDS
    assert "make env" in refusal
    files = {f"{name}_FILE": str(tmp_path / "secret") for name in PASSWORDS}
    one = PASSWORDS[0]
    refusal = start_rabbitmq(**{**files, f"{one}_FILE": str(tmp_path / "example")})
    assert re.findall("RABBITMQ_[A-Z_]+", refusal) == [one]


def test_rabbitmq_does_not_start_with_an_unusable_password_file(tmp_path: Path) -> None:
    one, *others = PASSWORDS
    (empty := tmp_path / "empty").touch()
    (secret := tmp_path / "secret").write_text("secret\n")
    given = dict.fromkeys(others, "secret")
    for file, problem in {
        tmp_path / "missing": f"{tmp_path}/missing cannot be read",
        tmp_path: f"{tmp_path} cannot be read",
        empty: f"{empty} is empty",
    }.items():
        assert start_rabbitmq(**given, **{f"{one}_FILE": str(file)}) == f"{one}_FILE: {problem}\n"
    refusal = start_rabbitmq(**given, **{one: "secret", f"{one}_FILE": str(secret)})
    assert refusal == f"{one}, {one}_FILE: only one of them may be set\n"
    assert f"{one} or {one}_FILE must be set" in start_rabbitmq(**given)
    (secret).write_text("two\nlines\n")
    assert "control characters" in start_rabbitmq(**given, **{f"{one}_FILE": str(secret)})


def test_rabbitmq_does_not_start_with_an_unusable_cookie_file(tmp_path: Path) -> None:
    (empty := tmp_path / "empty").touch()
    for file, problem in {tmp_path / "missing": "cannot be read", empty: "is empty"}.items():
        refusal = start_rabbitmq(**dict.fromkeys(PASSWORDS, "secret"), RABBITMQ_ERLANG_COOKIE_FILE=str(file))
        assert refusal == f"RABBITMQ_ERLANG_COOKIE_FILE: {file} {problem}\n"
