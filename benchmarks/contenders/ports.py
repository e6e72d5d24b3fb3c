"""Ports for the contenders' processes."""

import socket
from contextlib import suppress

PORTS = iter(range(20_000, 30_000))


def free_port() -> int:
    """Return a different unused port each time, from below the range that outgoing connections use."""
    for port in PORTS:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise SystemExit("No port is free")
