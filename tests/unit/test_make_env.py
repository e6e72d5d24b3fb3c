"""`make env` creates the settings and the secrets for Docker Compose, and keeps what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from notify_gateway.settings import GatewaySettings
from notify_local.dotenv_values import UnclearValue, dotenv_values
from notify_local.env_file import DRAWN
from support.servers import PROJECT

TEMPLATE = (PROJECT / ".env.example").read_text()


def make_env(file: Path, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    # The interpreter gets no virtual environment, because `make env` must not need one.
    interpreter = Path(sys.executable).resolve()
    return subprocess.run(  # noqa: S603 - ours
        ["make", "--directory", PROJECT, "env", f"PYTHON={interpreter} -S", f"FILE={file}"],  # noqa: S607 - found on PATH
        capture_output=True, text=True, check=False, umask=umask,
    )  # fmt: skip


def secrets_in(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text().removesuffix("\n") for file in folder.iterdir()}


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


def older(folder: Path, content: str) -> Path:
    """Return a settings file as older versions created it, with secrets in it."""
    file = folder / "env"
    file.write_text(f"SECRETS_DIR={folder}/secrets\n{content}")
    return file


def test_secrets_are_random_files_in_a_private_folder(tmp_path: Path) -> None:
    drawn: list[str] = []
    for name, umask in (("one", 0o022), ("two", 0o077)):
        (folder := tmp_path / name).mkdir()
        done = make_env(folder / "env", umask)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"KEY=$(cat {folder}/secrets/bootstrap_api_key)" in done.stdout
        secrets = secrets_in(folder / "secrets")
        assert set(secrets) == set(DRAWN)
        drawn += secrets.values()
        assert not any(secret in done.stdout or secret in (folder / "env").read_text() for secret in secrets.values())
        assert permissions(folder / "env") == 0o600
        # Containers run as other users, so the files must be readable. Their folder keeps other users out.
        assert permissions(folder / "secrets") == 0o700
        assert all(permissions(file) == 0o644 for file in (folder / "secrets").iterdir())
    # Base64url without padding: 43 characters hold 32 bytes.
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", secret) for secret in drawn)
    assert len(set(drawn)) == len(drawn)


def test_settings_are_those_of_the_example_with_the_folder_of_secrets(tmp_path: Path) -> None:
    make_env(tmp_path / "env")
    created = (tmp_path / "env").read_text()
    assert created == TEMPLATE.replace("=./secrets", f"={tmp_path}/secrets")
    assert f"\nBOOTSTRAP_API_KEY_FILE={tmp_path}/secrets/bootstrap_api_key\n" in created
    settings = (line.split("=", 1) for line in created.splitlines() if line and line[0] != "#")
    GatewaySettings.model_validate({name.lower(): value for name, value in settings if value})


def test_existing_files_are_kept_and_missing_ones_are_created(tmp_path: Path) -> None:
    file, folder = tmp_path / "env", tmp_path / "secrets"
    make_env(file)
    file.write_text(file.read_text() + "LOG_LEVEL=DEBUG\n")
    (folder / "postgres_password").write_text("my own")
    (folder / "bootstrap_api_key").unlink()
    before, settings = secrets_in(folder), file.read_text()
    done = make_env(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{file} exists and was not changed" in done.stdout
    assert file.read_text() == settings
    after = secrets_in(folder)
    assert after == {**before, "bootstrap_api_key": after["bootstrap_api_key"]}
    assert "Every secret exists" in make_env(file).stdout
    assert secrets_in(folder) == after


def test_secrets_of_an_older_settings_file_are_copied_and_not_replaced(tmp_path: Path) -> None:
    file = older(
        tmp_path,
        "POSTGRES_PASSWORD=plain\n"
        "RABBITMQ_ADMIN_PASSWORD='with $ and #'\n"
        'RABBITMQ_GATEWAY_PASSWORD="with spaces"  # a comment\n'
        "BOOTSTRAP_API_KEY=\n"
        "TELEGRAM_BOT_TOKEN=123456:ABC-DEF\n"
        r'EMAIL_DKIM_KEY="-----BEGIN\nEND-----"' + "\n",
    )
    before = file.read_text()
    done = make_env(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert file.read_text() == before
    secrets = secrets_in(tmp_path / "secrets")
    assert set(secrets) == {*DRAWN, "telegram_bot_token", "email_dkim_key"}
    assert secrets["postgres_password"] == "plain"
    assert secrets["rabbitmq_admin_password"] == "with $ and #"
    assert secrets["rabbitmq_gateway_password"] == "with spaces"
    assert secrets["telegram_bot_token"] == "123456:ABC-DEF"
    assert secrets["email_dkim_key"] == "-----BEGIN\nEND-----"
    assert len(secrets["bootstrap_api_key"]) == 43
    assert f"  TELEGRAM_BOT_TOKEN_FILE={tmp_path}/secrets/telegram_bot_token\n" in done.stdout
    assert "plain" not in done.stdout


def test_unclear_value_changes_nothing(tmp_path: Path) -> None:
    file = older(tmp_path, 'POSTGRES_PASSWORD=plain\nBOOTSTRAP_API_KEY="${KEY}"\n')
    done = make_env(file)
    assert done.returncode != 0
    assert "BOOTSTRAP_API_KEY" in done.stderr
    assert not (tmp_path / "secrets").exists()
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets/bootstrap_api_key").write_text("written by hand")
    assert make_env(file).returncode == 0


def test_folder_that_others_can_open_is_refused(tmp_path: Path) -> None:
    (folder := tmp_path / "secrets").mkdir()
    folder.chmod(0o755)
    done = make_env(tmp_path / "env")
    assert done.returncode != 0
    assert f"chmod 700 {folder}" in done.stderr
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("X=a", "a"), ("export X=a", "a"), ("  X = a  ", "a"), ("X=a#b", "a#b"), ("X=a # b", "a"), ("X=1\nX=2", "2"),
        ("X='a b'", "a b"), ("X='a$b\"c' # d", 'a$b"c'), ('X="a b"', "a b"), (r'X="a\nb"', "a\nb"), ("X=a'b", "a'b"),
        (r"X=a\nb", r"a\nb"), ("X=a\r\nY=b", "a"),
    ],
)  # fmt: skip
def test_values_are_read_as_compose_reads_them(written: str, value: str) -> None:
    assert dotenv_values(written, {"X"}) == {"X": value}


@pytest.mark.parametrize("written", ["X=", "X=\nY=1", "# X=1", "XY=1", "Y=1 X=2"])
def test_variables_without_a_value_are_left_out(written: str) -> None:
    assert dotenv_values(written, {"X"}) == {}


@pytest.mark.parametrize("written", ["X=$Y", "X=a$$b", 'X="a$b"', r'X="a\tb"', "X='a", 'X="two', r"X='a\'b'", "X=#a"])
def test_values_that_only_compose_can_read_are_refused(written: str) -> None:
    with pytest.raises(UnclearValue, match=r"^X$"):
        dotenv_values(written, {"X"})
