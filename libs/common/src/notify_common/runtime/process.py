"""Run a service process: handle signals, and serve HTTP while the actual work runs."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
import uvloop
from typing_extensions import override

from notify_common.errors import StartupError
from notify_common.runtime.logging import configure_logs
from notify_common.runtime.settings import ServiceSettings

log = logging.getLogger(__name__)

GRACEFUL_TIMEOUT = 15  # seconds for requests in progress after SIGTERM
KEEP_ALIVE = 75  # seconds that an idle connection stays open
OPEN_FILES = 16_384  # each connection is one; many systems allow a process only 1,024 by default
# In each turn, the event loop accepts only one connection per socket. A turn takes tens of milliseconds while long
# lists are rendered, so a client that opens thousands of connections at once would keep all others waiting for seconds.
ACCEPTED_AT_ONCE = 16
CLOSE = b"connection", b"close"
GC_THRESHOLDS = (50_000, 20, 100)  # new objects, and collections of the younger generations (default: 700, 10, 10)


def run(main: Callable[[], Coroutine[Any, Any, None]], settings: ServiceSettings) -> None:
    """Run a service until it ends. The exit code is 0 after SIGTERM or SIGINT; after `StartupError`, it is 1."""
    configure_logs(settings.log_level, settings.log_format)
    for variable in settings.example_secrets():
        log.warning("ALLOW_INSECURE allows a secret that everyone can read in an example", extra={"variable": variable})
    for variable in settings.plain_text():
        log.warning(
            "messages and passwords may cross the network in plain text, because this variable is not set",
            extra={"variable": variable},
        )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except StartupError as error:
        sys.exit(str(error))


async def serve(
    app: Any,  # noqa: ANN401 - an ASGI application
    *,
    host: str,
    port: int,
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    http: type[asyncio.Protocol],
    also: tuple[str, int] | None = None,
    draining: Callable[[], None] | None = None,
    drain_for: float = 0.0,
    stopping: Callable[[], None] | None = None,
) -> None:
    """Serve `app` and run `work` until SIGTERM or SIGINT, then set the event passed to `work` and wait until it ends.

    `also` is a second address, for private endpoints; the ASGI scope tells `app` which address received the request.

    After the signal, `draining` is called, and requests are served for another `drain_for` seconds, in which load
    balancers notice that this process is about to stop. A second signal ends that time. `stopping` is then called to
    end responses that would never end by themselves.

    HTTP stops first, so that `work` can finish all accepted requests. If `work` fails, the process ends with its error.
    """
    # A full garbage collection traverses every message in flight, which takes tens of milliseconds. It therefore runs
    # rarely, and skips the objects that live as long as the process.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    _allow_open_files()
    stop = asyncio.Event()
    server = _server(app, http)
    addresses = [(host, port)] if also is None else [(host, port), also]
    sockets = listening_sockets(addresses)

    shutdown = _Shutdown(server, draining, drain_for, stopping)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, shutdown.signalled)
    log.info("listening", extra={"url": f"http://{host}:{port}"})
    working = asyncio.create_task(work(stop))
    working.add_done_callback(lambda _: shutdown.end())
    try:
        await server.serve(sockets)
    finally:
        shutdown.ended()
        stop.set()
        await working
    log.info("stopped")


class _Server(uvicorn.Server):
    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own signal handlers would stop the server at once.
        yield


class _Shutdown:
    """The end of serving in two steps: first, clients are asked to leave, and after a while, the server stops."""

    def __init__(
        self,
        server: uvicorn.Server,
        draining: Callable[[], None] | None,
        drain_for: float,
        stopping: Callable[[], None] | None,
    ) -> None:
        self._server = server
        self._draining = draining
        self._drain_for = drain_for
        self._stopping = stopping
        self._timer: asyncio.TimerHandle | None = None

    def signalled(self) -> None:
        """Begin to drain, or stop at once if that has begun."""
        if self._timer is not None or not self._drain_for:
            self.end()
            return
        log.info("draining", extra={"seconds": self._drain_for})
        self._drain()
        self._timer = asyncio.get_running_loop().call_later(self._drain_for, self.end)

    def end(self) -> None:
        """Stop accepting connections, and end the responses in progress."""
        if self._server.should_exit:
            return
        self._drain()
        self._server.should_exit = True
        if self._stopping is not None:
            self._stopping()

    def ended(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _drain(self) -> None:
        if self._draining is not None:
            self._draining()
        # A client that keeps its connection open would send requests to this process until it stops, and one of them
        # may be on its way when the connection is closed. So each connection is closed after a response that says so.
        # uvicorn copies `encoded_headers` into new `default_headers` once a second.
        headers = self._server.config.encoded_headers
        if CLOSE not in headers:
            headers.append(CLOSE)
            self._server.server_state.default_headers.append(CLOSE)  # requests in progress refer to this list


def _allow_open_files() -> None:
    """Raise the limit of open files to `OPEN_FILES`, or as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems have a lower limit than they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _server(app: Any, http: type[asyncio.Protocol]) -> uvicorn.Server:  # noqa: ANN401 - as above
    return _Server(
        uvicorn.Config(
            app,
            http=http,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the gateway finds the client behind trusted proxies itself
            # Clients and proxies must close idle connections first, or we may close one just as it is reused.
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACEFUL_TIMEOUT,
        )
    )


def listening_sockets(addresses: Iterable[tuple[str, int]]) -> list[socket.socket]:
    """Return the sockets to accept connections from; raise `StartupError` if an address is in use.

    Each socket occurs `ACCEPTED_AT_ONCE` times, as duplicates that share one queue of new connections.
    """
    bound = [each for address in addresses for each in _bound(*address)]
    return [*bound, *(each.dup() for each in bound for _ in range(ACCEPTED_AT_ONCE - 1))]


def _bound(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of `host`; raise `StartupError` if one cannot be bound."""
    sockets = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
    except OSError as error:
        for each in sockets:
            each.close()
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sockets
