"""Run Exim, a real mail server, from Debian packages that are unpacked but not installed."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme
from notify_email_sender.settings import EmailSenderSettings
from notify_local.ports import Ports

from support.conformance import SECRET
from support.debian import unpacked

PACKAGES = ("exim4-daemon-light", "libnss-wrapper")
NOBODY = 65534
START_TIMEOUT = 20.0  # seconds
CONFIGURATION = """
exim_path = {program}
primary_hostname = mx.example.org
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
keep_environment = *
local_interfaces = 127.0.0.1
tls_advertise_hosts = *
tls_certificate = {folder}/server.pem
auth_advertise_hosts = ${{if eq {{$tls_in_cipher}}{{}}{{}}{{*}}}}
acl_smtp_rcpt = recipient
acl_smtp_data = accept
smtp_accept_max_per_connection = 5
begin acl
recipient:
  deny
    !authenticated = *
    message = log in first
  deny
    local_parts = nobody
    message = no such user
  defer
    local_parts = busy
    message = mailbox busy
  accept
begin routers
all:
  driver = accept
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {folder}/mail
  maildir_format
  user = Debian-exim
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if and {{{{eq{{$auth2}}{{orders}}}}{{eq{{$auth3}}{{{secret}}}}}}}}}
  server_set_id = $auth2
"""


@dataclass(frozen=True)
class Exim:
    """A running Exim server."""

    folder: Path
    port: int

    def settings(self, **change: object) -> EmailSenderSettings:
        return EmailSenderSettings.model_validate(
            {
                "email_provider": "smtp",
                "email_from": "Example Shop <orders@example.org>",
                "smtp_host": "127.0.0.1",
                "smtp_port": self.port,
                "smtp_user": "orders",
                "smtp_password": SECRET,
                "smtp_ca_file": self.folder / "ca.pem",
                **change,
            }
        )

    def mailbox(self) -> list[EmailMessage]:
        """Return the messages that Exim has delivered."""
        files = (self.folder / "mail" / "new").glob("*")
        return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]


@contextmanager
def running_exim() -> Iterator[Exim]:
    """Run a server on 127.0.0.1 that requires STARTTLS and a login and delivers into a maildir."""
    with TemporaryDirectory(prefix="exim-") as name, _running_in(Path(name)) as exim:
        yield exim


@contextmanager
def _running_in(folder: Path) -> Iterator[Exim]:
    root = unpacked(*PACKAGES, folder=folder / "packages", with_libraries=True)
    user = os.getuid() or NOBODY  # Exim refuses to run as root
    for name in ("spool", "log", "mail"):
        (folder / name).mkdir()
        if os.getuid() == 0:
            os.chown(folder / name, user, user)
    folder.chmod(0o711)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    (folder / "server.pem").chmod(0o644)
    (folder / "passwd").write_text(f"root:x:0:0::/:/bin/sh\nDebian-exim:x:{user}:{user}::/:/bin/sh\n")
    (folder / "group").write_text(f"root:x:0:\nDebian-exim:x:{user}:\n")
    program, port = root / "usr/sbin/exim4", Ports().free(20_025)
    program.chmod(0o755)  # removes setuid, which would make the loader ignore the variables below
    configuration = CONFIGURATION.format(program=program, folder=folder, secret=SECRET)
    (folder / "configuration").write_text(configuration)
    [libraries] = {library.parent for library in root.rglob("libnss_wrapper.so")}
    environment = {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": str(libraries),
        "LD_PRELOAD": str(libraries / "libnss_wrapper.so"),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }
    command = [str(program), "-C", f"{folder}/configuration", "-bdf", "-oX", str(port), "-oP", f"{folder}/spool/pid"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # noqa: S603 - ours
        try:
            _await_listening(process, port, folder)
            yield Exim(folder, port)
        finally:
            process.terminate()
            process.wait(10)


def _await_listening(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            output = (folder / "output").read_text()
            assert process.poll() is None, output
            assert time.monotonic() < deadline, output
            time.sleep(0.05)
        else:
            return
