"""TCP ports on 127.0.0.1."""

import socket

from notify_local.console import say

TRIED = 200


class Ports:
    """Hands out ports, each once: the preferred one, or the next free one after it."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def free(self, preferred: int) -> int:
        """A port that nothing listens on."""
        for port in range(preferred, min(preferred + TRIED, 65536)):
            if port not in self._taken and _is_free(port) and _reserve(port):
                self._taken.add(port)
                if port != preferred:
                    say(f"Port {preferred} is taken: using {port}")
                return port
        return self._any()

    def _any(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self._taken.add(port)
        return port


def _reserve(port: int) -> bool:
    """Whether no other stack is about to use the port: it takes a while until a server listens there."""
    reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # The same number in UDP, which nobody here uses.
        reservation.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    reservation.detach()  # until this process ends
    return True


def _is_free(port: int) -> bool:
    # The servers set SO_REUSEADDR too: connections in TIME_WAIT do not keep a port.
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - only probed
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
