"""Messages with properties that RabbitMQ accepts but AMQP libraries cannot decode, published as raw frames."""

import struct
from dataclasses import dataclass, replace

from aio_pika.abc import AbstractChannel
from aiormq import spec
from aiormq.channel import Channel
from notify_common.rabbitmq.raw_channel import write_publishes
from typing_extensions import override

# Property flags: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 4.2.6.1 and 1.8
HEADERS, MESSAGE_ID, TIMESTAMP = 1 << 13, 1 << 7, 1 << 6
CONTINUED = 1 << 0  # another word of flags follows, in AMQP; RabbitMQ ignores it
END_OF_TIME = b"\xff" * 8


class RawString(str):
    """A string that is published as these bytes, which need not be UTF-8."""

    __slots__ = ("_raw",)
    _raw: bytes

    def __new__(cls, raw: bytes) -> "RawString":
        self = super().__new__(cls, "raw")
        self._raw = raw
        return self

    @override
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self._raw


class RawProperties(spec.Basic.Properties):
    """Properties that are published as these bytes."""

    def __init__(self, flags: int, encoded: bytes) -> None:
        super().__init__(message_id="raw")
        self._raw = struct.pack(">H", flags) + encoded

    @override
    def marshal(self) -> bytes:
        return self._raw

    def __bool__(self) -> bool:
        return True  # pamqp would replace properties that are false


@dataclass(frozen=True)
class Undecodable:
    """A message with a property, or a routing key, that cannot be decoded."""

    name: str
    flags: int = 0
    encoded: bytes = b""
    headers: bytes = b""
    """The entries of the table of headers, if it is one of these that cannot be decoded."""
    routing_key: bytes | None = None

    def elsewhere(self) -> "Undecodable":
        """Return the same for an exchange that routes by the routing key, which must then be a valid one."""
        return replace(self, routing_key=None)

    def properties(self, headers: bytes = b"") -> RawProperties:
        """Return the properties, with further headers."""
        # In a frame, the headers precede the other properties that are used here.
        return RawProperties(self.flags | HEADERS, table(headers + self.headers) + self.encoded)


def short(raw: bytes) -> bytes:
    """Encode a short string."""
    return bytes([len(raw)]) + raw


def long(raw: bytes) -> bytes:
    """Encode a long string, or the entries of a table or the items of an array."""
    return struct.pack(">I", len(raw)) + raw


table = long


def header(name: bytes, kind: bytes, value: bytes) -> bytes:
    """Encode an entry of a table."""
    return short(name) + kind + value


def nested(levels: int) -> bytes:
    """Encode a table inside a table, and so on."""
    encoded = table(b"")
    for _ in range(levels):
        encoded = table(header(b"", b"F", encoded))
    return encoded


UNDECODABLE = [
    Undecodable("message id", MESSAGE_ID, short(b"\xff\xfe")),
    Undecodable("timestamp", TIMESTAMP, END_OF_TIME),
    Undecodable("header name", headers=header(b"\xff", b"S", long(b"value"))),
    Undecodable("header text", headers=header(b"text", b"S", long(b"\xff"))),
    Undecodable("header time", headers=header(b"time", b"T", END_OF_TIME)),
    Undecodable("nested headers", headers=header(b"nested", b"F", nested(1500))),
    # These can be decoded, but not encoded again, or not with our own headers in the same frame.
    Undecodable("large number", headers=header(b"number", b"d", struct.pack(">d", 1e300))),
    Undecodable("large headers", headers=header(b"text", b"S", long(b"x" * 130_930))),
    Undecodable("many headers", headers=header(b"array", b"A", long(b"V" * 100_000))),
    Undecodable("routing key", routing_key=b"\xff"),
    Undecodable("flags", MESSAGE_ID | CONTINUED, short(b"id")),
]


async def publish_raw(
    channel: AbstractChannel,
    exchange: str,
    routing_key: str,
    body: bytes,
    undecodable: Undecodable,
    headers: bytes = b"",
) -> None:
    """Publish the message and return once RabbitMQ has confirmed it."""
    underlay = await channel.get_underlay_channel()
    assert isinstance(underlay, Channel)
    key = routing_key if undecodable.routing_key is None else RawString(undecodable.routing_key)
    publish = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=False)
    [confirmed] = await write_publishes(
        underlay, [(publish, undecodable.properties(headers), body)], may_write=lambda: True, abandon=lambda: None
    )
    await confirmed
