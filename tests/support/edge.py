"""The HTTPS reverse proxy of deploy/edge, run by Debian's HAProxy."""

import asyncio
import os
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from notify_local.ports import Ports

from support.debian import unpacked
from support.servers import PROJECT
from support.services import eventually

CONFIGURATION = PROJECT / "deploy/edge/haproxy.cfg"


@dataclass(frozen=True)
class Edge:
    """A running proxy. Clients trust its authority, whose certificate is for `localhost`."""

    folder: Path
    authority: trustme.CA
    process: subprocess.Popen[bytes]
    http_port: int
    https_port: int

    @property
    def url(self) -> httpx.URL:
        return httpx.URL(f"https://localhost:{self.https_port}")

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, verify=self.context(), timeout=20, trust_env=False)

    async def connect(self, protocol: str = "http/1.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = self.context()
        context.set_alpn_protocols([protocol])
        return await asyncio.open_connection("localhost", self.https_port, ssl=context)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGUSR2)


def issue_certificate(authority: trustme.CA, folder: Path) -> None:
    """Write a new certificate and its key. Its owner replaces the files by renaming others."""
    issued = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    for name, content in (("tls.crt", chain), ("tls.key", issued.private_key_pem.bytes())):
        draft = folder / f"{name}.new"
        draft.write_bytes(content)
        draft.rename(folder / name)


@asynccontextmanager
async def running_edge(
    haproxy: Path,
    folder: Path,
    gateway: httpx.URL,
    *,
    per_address: int = 200,
    requests_per_address: int = 20_000,
    configuration: Path = CONFIGURATION,
) -> AsyncIterator[Edge]:
    """Run the proxy in front of `gateway` until the context ends."""
    ports = Ports()
    http_port, https_port = ports.free(18_080), ports.free(18_443)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join({str(library.parent) for library in haproxy.parents[2].rglob("*.so*")}),
        "HTTP_ADDRESS": f"127.0.0.1:{http_port}",
        "HTTPS_ADDRESS": f"127.0.0.1:{https_port}",
        "HTTPS_PORT": str(https_port),
        "CERTIFICATES": str(folder),
        "GATEWAY": f"{gateway.host}:{gateway.port}",
        "CONNECTIONS_PER_ADDRESS": str(per_address),
        "REQUESTS_PER_ADDRESS": str(requests_per_address),
    }
    command = [str(haproxy), "-W", "-db", "-f", str(configuration)]
    with (folder / "log").open("wb") as log:
        authority = trustme.CA()
        issue_certificate(authority, folder)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220, S603 - ours
        edge = Edge(folder, authority, process, http_port, https_port)
        try:
            await eventually(lambda: _ready(edge), "the proxy has found the gateway")
            yield edge
        finally:
            process.terminate()
            process.wait(30)


async def _ready(edge: Edge) -> bool:
    assert edge.process.poll() is None, (edge.folder / "log").read_text()
    async with edge.client() as client:
        try:
            return (await client.get("/livez")).status_code != httpx.codes.SERVICE_UNAVAILABLE
        except httpx.TransportError:
            return False


def haproxy_for_tests(folder: Path) -> Path:
    """Return the path of HAProxy, or skip the test if it cannot be had."""
    program = unpacked("haproxy", folder=folder, with_libraries=True) / "usr/sbin/haproxy"
    if not program.exists():
        pytest.skip("HAProxy could not be unpacked.")
    return program
