"""Decode the properties of every message that RabbitMQ accepts, so that no message costs its reader the connection.

RabbitMQ checks neither texts nor times, and tables may be nested thousands of levels deep. pamqp raises an error for
such properties, and aiormq then closes the connection. RabbitMQ then redelivers the message, so each of its readers
would reconnect forever: see `docs/decisions/0022-properties-that-cannot-be-decoded.md`.

pamqp's decoders can only be replaced for the whole process. Its version is locked, a test compares these decoders with
pamqp's own, and another sends such messages to every consumer.
"""

import logging
import struct
from collections.abc import Callable

from aiormq import spec
from pamqp import decode
from pamqp.header import ContentHeader

log = logging.getLogger(__name__)

MAX_DEPTH = 10  # RabbitMQ's own headers have tables and arrays on four levels
_START = struct.Struct(">HHQH")  # class, weight, size of the body, and which properties follow
_LENGTH = struct.Struct(">I")
# https://www.rabbitmq.com/amqp-0-9-1-errata#section_3
_NUMBERS = {
    ord(kind): struct.Struct(f">{code}")
    for kind, code in {
        "t": "?", "b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip
_TEXT, _BYTES, _TIME, _DECIMAL, _VOIDS = ord("S"), ord("x"), ord("T"), ord("D"), {ord("V"), 0}
_TABLE, _ARRAY = ord("F"), ord("A")


def accept_any_properties() -> None:
    """Decode the properties of all messages in this process with this module. Call this before connecting."""
    ContentHeader.unmarshal = _read_header  # type: ignore[method-assign]
    decode.METHODS["shortstr"] = _short_string_of_method


class _Values:
    """Decodes the values in the bytes of one content header, from front to back."""

    __slots__ = ("_data", "at", "incomplete")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at
        self.incomplete = False
        """True if a value could not be decoded. It is then None or, if its name could not be decoded, left out."""

    def short_string(self) -> str | None:
        start = self.at + 1
        self.at = start + self._data[self.at]
        try:
            return self._data[start : self.at].decode()
        except UnicodeDecodeError:
            self.incomplete = True
            return None

    def octet(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def timestamp(self) -> object:
        self.at += 8
        try:
            return decode.timestamp(self._data[self.at - 8 : self.at])[1]
        except (ValueError, OverflowError, OSError):
            self.incomplete = True
            return None

    def table(self, depth: int = 0) -> "dict[str, object]":
        end = self._end()
        table: dict[str, object] = {}
        while self.at < end:
            name = self.short_string()
            value = self._value(end, depth)
            if name is not None:
                # RabbitMQ reads and writes the first of several entries with one name, so a forged one must not win.
                table.setdefault(name, value)
        self.at = end
        return table

    def _array(self, depth: int) -> list[object]:
        end = self._end()
        array = []
        while self.at < end:
            array.append(self._value(end, depth))
        self.at = end
        return array

    def _value(self, end: int, depth: int) -> object:
        kind = self._data[self.at]
        self.at += 1
        if kind == _TEXT:
            start, self.at = self.at + _LENGTH.size, self._end()
            # pamqp returns bytes if this is not UTF-8. It could not publish them again.
            return self._data[start : self.at].decode(errors="backslashreplace")
        if (number := _NUMBERS.get(kind)) is not None:
            start = self.at
            self.at += number.size
            return number.unpack_from(self._data, start)[0]
        return self._rare_value(kind, end, depth)

    def _rare_value(self, kind: int, end: int, depth: int) -> object:
        if kind in {_TABLE, _ARRAY} and depth < MAX_DEPTH:
            return self.table(depth + 1) if kind == _TABLE else self._array(depth + 1)
        if kind == _TIME:
            return self.timestamp()
        if kind == _DECIMAL:
            self.at += 5
            return decode.decimal(self._data[self.at - 5 : self.at])[1]
        if kind == _BYTES:
            start, self.at = self.at + _LENGTH.size, self._end()
            return bytearray(self._data[start : self.at])
        if kind not in _VOIDS:
            self.incomplete = True
            # The length of an unknown kind of value is unknown, so the rest of the table is skipped.
            self.at = self._end() if kind in {_TABLE, _ARRAY} else end
        return None

    def _end(self) -> int:
        """Read a length, and return where the value that follows ends."""
        length: int = _LENGTH.unpack_from(self._data, self.at)[0]
        self.at += _LENGTH.size
        return self.at + length


_DECODERS: dict[str, Callable[[_Values], object]] = {
    "shortstr": _Values.short_string, "octet": _Values.octet, "timestamp": _Values.timestamp, "table": _Values.table,
}  # fmt: skip
_PROPERTIES = tuple(
    (spec.Basic.Properties.flags[name], name, _DECODERS[spec.Basic.Properties.amqp_type(name)])
    for name in spec.Basic.Properties.__slots__
)


def _read_header(self: ContentHeader, data: bytes) -> None:
    # RabbitMQ ignores the two lowest flags. One of them means that more flags follow, but there are no more properties.
    self.class_id, self.weight, self.body_size, flags = _START.unpack_from(data)
    properties, values = self.properties, _Values(data, _START.size)
    try:
        for flag, name, decoder in _PROPERTIES:
            if flags & flag:
                setattr(properties, name, decoder(values))
    except IndexError as error:
        raise ValueError("the content header is too short") from error
    if values.incomplete:
        log.warning("a received message has properties that cannot be decoded; they are ignored")


def _short_string_of_method(encoded: bytes) -> tuple[int, str]:
    """Decode a text that is not a property, such as a routing key or the broker's explanation of an error."""
    try:
        return decode.short_str(encoded)
    except UnicodeDecodeError:
        end = 1 + encoded[0]
        return end, encoded[1:end].decode(errors="backslashreplace")
