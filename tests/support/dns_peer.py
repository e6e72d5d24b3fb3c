"""A name server for tests. It knows every name as 127.0.0.1, but one as many addresses, and leaves some unanswered."""

import asyncio
import socket
from collections import Counter

from typing_extensions import override

HEADER = 12  # bytes
A_RECORD, TRUNCATED = 1, b"\x83\x80"
MANY, THAT_FIT = "many.example", 30  # a name with more addresses than fit into a UDP packet
# A pointer to the name in the question, type A, class IN, a TTL of zero, and four bytes of address (RFC 1035, 4.1.3).
RECORD = bytes.fromhex("c00c00010001000000000004")
LOCALHOST = RECORD + socket.inet_aton("127.0.0.1")


class DnsPeer(asyncio.DatagramProtocol):
    """A name server on 127.0.0.1 that leaves names ending in `silent` unanswered."""

    def __init__(self, silent: str = "slow.example") -> None:
        self._silent = silent
        self._transport: asyncio.DatagramTransport | None = None
        self.queries: Counter[str] = Counter()
        """How often each name was asked for its IPv4 address."""

    async def open(self) -> str:
        """Start listening, and return the address and port."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        # Many queries may arrive together, and those that do not fit into the buffer would be lost.
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        host, port = self._transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _name_at(data, HEADER)
        is_ipv4 = int.from_bytes(data[end : end + 2], "big") == A_RECORD
        if is_ipv4:
            self.queries[name] += 1
        if name.endswith(self._silent) or self._transport is None:
            return
        answers, flags = [LOCALHOST] if is_ipv4 else [], b"\x81\x80"
        if name.endswith(MANY):
            answers, flags = (
                [RECORD + bytes((127, 0, 0, 1 + number)) for number in range(THAT_FIT * is_ipv4)],
                TRUNCATED,
            )
        # The id, the flags of a response, one question, the answers, and no further records.
        header = data[:2] + flags + b"\x00\x01" + len(answers).to_bytes(2, "big") + b"\x00" * 4
        self._transport.sendto(header + data[HEADER : end + 4] + b"".join(answers), addr)


def _name_at(data: bytes, start: int) -> tuple[str, int]:
    """Return the name that begins at `start`, and the index after it."""
    labels = []
    while length := data[start]:
        labels.append(data[start + 1 : start + 1 + length].decode())
        start += 1 + length
    return ".".join(labels), start + 1
