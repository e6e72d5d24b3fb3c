"""Free TCP ports on 127.0.0.1."""

import socket

from notify_local.console import say

CANDIDATES = 200


class Ports:
    """An allocator of free TCP ports that never returns the same port twice."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def free(self, preferred: int) -> int:
        """Return `preferred` if it is free, else the next free port, or any free port if there is none nearby."""
        for port in range(preferred, min(preferred + CANDIDATES, 65536)):
            if port not in self._taken and _is_free(port) and _reserve(port):
                self._taken.add(port)
                if port != preferred:
                    say(f"Port {preferred} is taken; using {port} instead")
                return port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self._taken.add(port)
        return port


def _reserve(port: int) -> bool:
    """Reserve the port until a server listens on it; return False if another stack has reserved it."""
    reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # Binding the UDP port with the same number reserves the TCP port for this stack; no server here uses UDP.
        reservation.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    reservation.detach()  # the socket stays open until this process ends
    return True


def _is_free(port: int) -> bool:
    # With SO_REUSEADDR, which the servers set too, connections in TIME_WAIT do not occupy the port.
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - bound only to test whether it is free
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
