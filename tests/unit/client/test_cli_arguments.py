"""The command `notify` without a gateway: arguments, profiles, errors and output."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from notify_client import errors
from notify_client.cli.connection import resolve
from notify_client.cli.exit_codes import CODES, CommandFailed, ExitCode, code_for, describe
from notify_client.cli.options import moment, pairs, past
from notify_client.cli.output import one_line
from notify_client.cli.profiles import Profile, config_file, read, write
from notify_client.models import FieldProblem, Problem
from support.cli import Notify
from support.servers import PROJECT

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
COMMANDS = (
    "send", "get", "list", "cancel", "tail", "failures", "retry", "import", "login", "users get", "users set",
    "users delete", "keys list", "keys create", "keys revoke", "outbox run", "outbox list", "outbox release",
    "outbox drop", "outbox create-table",
)  # fmt: skip
WITHOUT_JSON = {"outbox run"}  # it only logs
OUTBOX_COMMANDS = "notify_client.cli.commands.outbox"
NOBODY = {"NOTIFY_URL": "http://127.0.0.1:1"}


@pytest.fixture
def notify(tmp_path: Path) -> Notify:
    return Notify(tmp_path, NOBODY)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store two profiles; return the file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("NOTIFY_URL", "NOTIFY_API_KEY", "NOTIFY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    default, other = Profile("http://default:8080", "ntf_default"), Profile("https://other")
    write(config_file(), {"default": default, "other": other})
    return config_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_with_an_example(command: str, notify: Notify) -> None:
    printed = notify.run(*command.split(), "--help")
    assert printed.code == 0
    assert f"notify {command}" in " ".join(printed.stdout.split("Example")[1].split())
    assert ("--json" in printed.stdout) is (command not in WITHOUT_JSON)


@pytest.mark.parametrize("command", COMMANDS)
def test_documentation_describes_every_command(command: str) -> None:
    assert f"`notify {command}" in (PROJECT / "docs/cli.md").read_text()


def test_help_of_retry_says_what_is_waited_for(notify: Notify) -> None:
    words = notify.run("retry", "--help").stdout.replace("│", " ").split()
    assert "not until they are delivered" in " ".join(words)


def test_version_is_printed(notify: Notify) -> None:
    assert notify.run("--version").stdout.startswith("notify-gateway-client ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["send", "text", "--user", "1"], "--channel"),
        (["send", "text", "--user", "1", "--channel", "email", "--to", "a@example.org"], "CHANNEL=RECIPIENT"),
        (["send", "text", "--user", "1", "--channel", "email", "--metadata", "a"], "NAME=VALUE"),
        (["send", "text", "--user", "1", "--channel", "email", "--send-at", "tomorrow"], "--send-at"),
        (["list", "--limit", "0"], "--limit"),
        (["failures", "--since", "2x"], "--since"),
        (["retry"], "--status"),
        (["retry", "--status", "sent"], "--status"),
        (["retry", "1", "--dry-run"], "ID"),
        (["retry", "1", "--wait"], "ID"),
        (["tail", "--status", "fialed"], "--status"),
        (["send", "text", "--user", "1", "--channel", "email", "--idempotency-key", ""], "idempotency-key"),
        (["send", "\udcff", "--user", "1", "--channel", "email"], "UTF-8"),
        (["list", "--user", "\udcff"], "UTF-8"),
        (["users", "set", "1", "email"], "--recipient"),
        (["login", "--profile", "a b"], "--profile"),
        (["login"], "--url"),
        (["list", "--profile", "missing"], "missing"),
        (["import", "missing.csv"], "missing.csv"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_invalid_arguments_are_one_line_that_names_them(arguments: list[str], named: str, notify: Notify) -> None:
    printed = notify.run(*arguments)
    assert (printed.code, printed.stdout) == (ExitCode.USAGE, "")
    [line] = printed.stderr.splitlines()
    assert line.startswith("notify: ")
    assert named in line


def test_gateway_must_be_known(tmp_path: Path) -> None:
    printed = Notify(tmp_path).run("list")
    assert printed.code == ExitCode.USAGE
    assert printed.stderr == "notify: the gateway is not known: run notify login, or set NOTIFY_URL\n"


def test_unreachable_gateway_is_named(notify: Notify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    printed = notify.run("list")
    assert printed.code == ExitCode.UNAVAILABLE
    assert printed.stderr.startswith("notify: http://127.0.0.1:1: ")
    assert printed.stderr.count("\n") == 1


def test_unreachable_gateway_of_a_profile_names_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    write(tmp_path / "notify/config.toml", {name: Profile("http://127.0.0.1:1") for name in ("default", "work")})
    for arguments, name in (([], "default"), (["--profile", "work"], "work")):
        printed = Notify(tmp_path).run("list", *arguments)
        assert printed.code == ExitCode.UNAVAILABLE
        assert f"the profile {name} has this address; if it has changed: notify login" in printed.stderr
    assert "profile" not in Notify(tmp_path, {"NOTIFY_URL": "http://127.0.0.1:2"}).run("list").stderr


def test_login_names_a_gateway_that_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify_client.retrying.FIRST_WAIT", 0.001)
    printed = Notify(tmp_path).run("login", "--url", "http://127.0.0.1:1", "--api-key-stdin")
    assert printed.code == ExitCode.UNAVAILABLE
    assert printed.stderr.startswith("notify: http://127.0.0.1:1: ")


@pytest.mark.parametrize("text", ["90s", "90m", "36h", "7d"])
def test_distances_are_relative_to_now(text: str) -> None:
    distance = {"90s": timedelta(seconds=90), "90m": timedelta(minutes=90), "36h": timedelta(hours=36)}
    expected = distance.get(text, timedelta(days=7))
    assert moment(text, now=NOW) - NOW == expected
    assert NOW - moment(text, sign=-1, now=NOW) == expected


def test_times_without_offset_are_local() -> None:
    assert moment("2026-12-24T18:00+01:00") == datetime(2026, 12, 24, 17, tzinfo=UTC)
    assert moment("2026-12-24T18:00") == datetime(2026, 12, 24, 18).astimezone()
    assert past("2026-12-24T18:00Z") == datetime(2026, 12, 24, 18, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "h", "-1h", "99999999999d", "٣h", "yesterday"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        moment(text)


def test_pairs_keep_further_equals_signs() -> None:
    assert pairs(["webhook=https://example.org/?a=b", "email="], "--to") == {
        "webhook": "https://example.org/?a=b", "email": "",
    }  # fmt: skip
    assert pairs([], "--to") is None
    with pytest.raises(typer.BadParameter):
        pairs(["=x"], "--to")


def test_profiles_are_private(configured: Path) -> None:
    assert configured.stat().st_mode & 0o777 == 0o600
    assert configured.parent.stat().st_mode & 0o777 == 0o700
    configured.chmod(0o644)
    write(configured, {"quoted": Profile('http://a/"\\', 'a"\\b')})
    assert configured.stat().st_mode & 0o777 == 0o600
    assert read(configured) == {"quoted": Profile('http://a/"\\', 'a"\\b')}
    assert [each.name for each in configured.parent.iterdir()] == ["config.toml"]


def test_environment_variables_override_only_a_profile_that_is_not_named(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(None) == Profile("http://default:8080", "ntf_default")
    assert resolve("other") == Profile("https://other")
    monkeypatch.setenv("NOTIFY_API_KEY", "ntf_environment")
    assert resolve(None) == Profile("http://default:8080", "ntf_environment")
    monkeypatch.setenv("NOTIFY_URL", "http://environment")
    assert resolve(None) == Profile("http://environment", "ntf_environment")
    assert resolve("other") == Profile("https://other")
    assert resolve("default") == Profile("http://default:8080", "ntf_default")
    with pytest.raises(CommandFailed, match="missing"):
        resolve("missing")
    assert configured.exists()


def test_key_of_a_profile_is_not_sent_to_another_gateway(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_URL", "http://elsewhere:8080")
    assert resolve(None) == Profile("http://elsewhere:8080")
    monkeypatch.setenv("NOTIFY_URL", "http://default:8080/")
    assert resolve(None).api_key == "ntf_default"
    assert configured.exists()


@pytest.mark.parametrize(
    "content",
    [
        "api_key = ", "profiles = 1", "[profiles.a]\nkey = 'ntf_secret'", "[profiles.a]\nurl = 1",
        "[profiles.a]\nurl = 'http://a'\napi_key = ['ntf_secret']",
    ],
)  # fmt: skip
def test_invalid_configuration_is_an_error_that_does_not_repeat_it(content: str, configured: Path) -> None:
    configured.write_text(content)
    with pytest.raises(CommandFailed) as raised:
        read(configured)
    assert "ntf_secret" not in str(raised.value)
    assert str(configured) in str(raised.value)


def test_home_folder_that_is_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)
    with pytest.raises(CommandFailed, match="XDG_CONFIG_HOME"):
        config_file()


def test_every_error_has_an_exit_code() -> None:
    problem = Problem(title="", status=400, detail="d", code="c")
    for kind in set(errors.CLASSES.values()):
        expected = next((code for base, code in CODES.items() if issubclass(kind, base)), ExitCode.UNAVAILABLE)
        assert code_for(kind(problem)) == expected
    assert code_for(errors.NotCancellable(problem)) == ExitCode.CONFLICT
    assert code_for(errors.TimedOut("t")) == ExitCode.UNAVAILABLE


def test_errors_name_the_fields_in_one_line() -> None:
    fields = [FieldProblem(location="body", field=name, detail="must\nnot") for name in ("to.email", "message")]
    problem = Problem(title="", status=422, detail="d", code="invalid_request", errors=fields)
    assert describe(errors.InvalidRequest(problem)) == "to.email: must not; message: must not"


def test_texts_cannot_command_the_terminal() -> None:
    assert one_line("a\x1b[31mb\r\n\x9bc\u202ed") == "a [31mb c d"


def test_without_the_extra_the_command_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['typer'] = None; from notify_client.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 1
    assert result.stderr == (
        "notify: typer and rich are not installed. Install them: pip install 'notify-gateway-client[cli]'\n"
    )


def test_interrupted_start_prints_nothing() -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from notify_client.cli.main import main\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (result.returncode, result.stdout + result.stderr) == (ExitCode.INTERRUPTED, "")


@pytest.mark.parametrize("command", ["--help", "send --help", "users --help"])
def test_only_outbox_commands_import_sqlalchemy(command: str) -> None:
    assert "sqlalchemy" not in modules_after(command)
    assert "sqlalchemy" in modules_after("outbox --help")


def modules_after(command: str) -> set[str]:
    """Return the modules that a new process has imported at the end of the command."""
    code = (
        "import sys\n"
        "from notify_client.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)  # noqa: S603
    return set(result.stderr.split())


def test_without_its_extra_the_outbox_says_how_to_install_it(notify: Notify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    for name in [each for each in sys.modules if each.startswith(("notify_client.outbox", OUTBOX_COMMANDS))]:
        monkeypatch.delitem(sys.modules, name)
    for arguments in (["outbox", "run"], ["outbox", "list"], ["outbox"]):
        printed = notify.run(*arguments)
        assert printed.code == ExitCode.USAGE
        assert printed.stderr == (
            "notify: SQLAlchemy is not installed. Install it: pip install 'notify-gateway-client[outbox]'\n"
        )
