"""The HTTPS reverse proxy of deploy/edge, run by Debian's HAProxy."""

import asyncio
import os
import re
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
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

INSTALLED = Path("/usr/sbin/haproxy")
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

    def client(self, context: ssl.SSLContext | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, verify=context or self.context(), timeout=20, trust_env=False)

    async def connect(self, protocol: str = "http/1.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = self.context()
        context.set_alpn_protocols([protocol])
        return await asyncio.open_connection("localhost", self.https_port, ssl=context)

    async def notices(self, gateway: httpx.URL, *, ready: bool) -> None:
        """Wait until the proxy has noticed that one of several gateways is no longer ready, or ready again."""
        name = f"Server gateway/gateway{gateway.port} is "

        async def noticed() -> bool:
            changes = (self.folder / "log").read_text().split(name)[1:]
            return bool(changes) and changes[-1].startswith("UP") is ready

        description = f"the proxy notices that {gateway} is {'ready' if ready else 'not ready'}"
        await eventually(noticed, description, timeout=60)  # a gateway may have to start first

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
    *gateways: httpx.URL,
    per_address: int = 200,
    new_per_address: int = 5_000,
    requests_per_address: int = 20_000,
    health_port: int | None = None,
    configuration: Path = CONFIGURATION,
) -> AsyncIterator[Edge]:
    """Run the proxy in front of `gateways` until the context ends.

    Without a `health_port`, the gateways answer health checks on the port of the API.
    """
    ports = Ports()
    http_port, https_port = ports.free(18_080), ports.free(18_443)
    libraries = () if haproxy == INSTALLED else haproxy.parents[2].rglob("*.so*")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join({str(library.parent) for library in libraries}),
        "HTTP_ADDRESS": f"127.0.0.1:{http_port}",
        "HTTPS_ADDRESS": f"127.0.0.1:{https_port}",
        "HTTPS_PORT": str(https_port),
        "CERTIFICATES": str(folder),
        "GATEWAY": f"{gateways[0].host}:{gateways[0].port}",
        "HEALTH_PORT": str(health_port or gateways[0].port),
        "CONNECTIONS_PER_ADDRESS": str(per_address),
        "NEW_CONNECTIONS_PER_ADDRESS": str(new_per_address),
        "REQUESTS_PER_ADDRESS": str(requests_per_address),
    }
    command = [str(haproxy), "-W", "-db", "-f", str(_configuration(folder, gateways, configuration))]
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


def _configuration(folder: Path, gateways: Sequence[httpx.URL], template: Path) -> Path:
    """Return a configuration for these gateways: a template serves any number, but all on the same port."""
    if len(gateways) == 1:
        return template
    text, templates = re.subn(
        r"server-template gateway 4 \S+(.*)",
        lambda line: "\n    ".join(
            f"server gateway{each.port} {each.host}:{each.port} port {each.port}{line[1]}" for each in gateways
        ),
        template.read_text(),
    )
    assert templates == 1
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text)
    return configuration


async def _ready(edge: Edge) -> bool:
    assert edge.process.poll() is None, (edge.folder / "log").read_text()
    async with edge.client() as client:
        try:
            return (await client.get("/livez")).status_code != httpx.codes.SERVICE_UNAVAILABLE
        except httpx.TransportError:
            return False


def haproxy_for_tests(folder: Path) -> Path:
    """Return the path of HAProxy, or skip the test if it cannot be had."""
    if INSTALLED.exists():
        return INSTALLED  # apt-get then downloads nothing
    program = unpacked("haproxy", folder=folder, with_libraries=True) / "usr/sbin/haproxy"
    if not program.exists():
        pytest.skip("HAProxy could not be unpacked.")
    return program
