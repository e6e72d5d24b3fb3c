"""Open connections to the server that accepts writes, and close them without cancelling a commit."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg
from notify_common.runtime.hosts import Address, Hosts

CONNECT_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
LOGIN_CLASSES = frozenset({"28", "3D"})  # SQLSTATE: invalid authorization, invalid catalog (database) name


class Connection(asyncpg.Connection):
    """A connection that is closed if its statement times out or its task is cancelled.

    asyncpg would ask the server to cancel the statement. If that is a commit that waits for a standby, PostgreSQL stops
    waiting: the transaction becomes visible, although a failover would lose it. If only the connection is closed, the
    commit goes on waiting. Other statements end at the next `client_connection_check_interval`.

    The overridden method is private. `test_replication.py` fails if asyncpg no longer calls it.
    """

    def _cancel_current_command(self, *_waiters: "asyncio.Future[None] | None") -> None:
        # The caller, which is asyncpg's protocol, still needs the state that `terminate` would remove.
        asyncio.get_running_loop().call_soon(self.terminate)


class Connector:
    """Opens connections to the first server that accepts one; each server is given `timeout` seconds.

    `arguments` returns asyncpg's arguments for one connection. If `read_write`, a server that is read-only, because it
    is a standby, is not used.
    """

    def __init__(
        self, servers: Hosts, arguments: Callable[[], Mapping[str, Any]], *, timeout: float, read_write: bool
    ) -> None:
        self._servers = servers
        self._arguments = arguments
        self._timeout = timeout
        # asyncpg's own list of hosts shares one timeout, which a silent first host would use up.
        self._required: Mapping[str, Any] = {"target_session_attrs": "read-write"} if read_write else {}

    async def __call__(self) -> Connection:
        """Return a new connection; raise the errors of all servers if none accepts one."""
        errors: dict[Address, Exception] = {}
        for server in self._servers.in_turn():
            try:
                return await self._connect(server)
            except asyncio.CancelledError:
                # The caller's timeout is shorter than `timeout`, so its next attempt must begin with another server.
                self._servers.failed(server)
                raise
            except CONNECT_ERRORS as error:
                self._servers.failed(server)
                errors[server] = error
        if not self._required or all(sqlstate(error)[:2] in LOGIN_CLASSES for error in errors.values()):
            raise next(iter(errors.values()))
        raise ConnectionError("; ".join(f"{server}: {_reason(error)}" for server, error in errors.items()))

    async def _connect(self, server: Address) -> Connection:
        connection: Connection = await asyncpg.connect(
            host=server.host,
            port=server.port,
            timeout=self._timeout,
            connection_class=Connection,
            **self._required,
            **self._arguments(),
        )
        return connection


def sqlstate(error: BaseException) -> str:
    """Return the code that PostgreSQL gave the error, or an empty string."""
    return str(getattr(error, "sqlstate", None) or "")


def describe(error: BaseException) -> str:
    """Return the type and code of the error. Only texts that contain no values are added."""
    description = f"{type(error).__name__} {sqlstate(error)}".rstrip()
    # asyncpg raises a plain ConnectionError if the server refuses TLS, and `Connector` if there are several servers.
    if isinstance(error, ssl.SSLError) or type(error) is ConnectionError:
        return f"{description}: {error}"
    return description


def _reason(error: Exception) -> str:
    return "is read-only" if isinstance(error, asyncpg.TargetServerAttributeNotMatched) else describe(error)
