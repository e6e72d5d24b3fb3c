"""The decoder of message properties: the same as pamqp's if pamqp has no error, and never an error of its own."""

import struct
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from notify_common.rabbitmq.properties import accept_any_properties
from pamqp import frame
from pamqp.header import ContentHeader
from support.raw_messages import HEADERS, MESSAGE_ID, UNDECODABLE, Undecodable, header, long, nested, short, table
from support.servers import PROJECT

DECODE_BY_PAMQP = ContentHeader.unmarshal
names = st.text(max_size=30)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=300),
    st.binary(max_size=30).map(bytearray),
    st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1)).map(lambda time: time.replace(microsecond=0, tzinfo=UTC)),  # noqa: DTZ001
    st.decimals(-1000, 1000, places=3),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
texts = st.none() | st.text(min_size=1, max_size=60)


@pytest.fixture(autouse=True)
def installed() -> None:
    accept_any_properties()


def decoded(flags: int, encoded: bytes) -> spec.Basic.Properties:
    content_header = ContentHeader()
    content_header.unmarshal(struct.pack(">HHQH", 60, 0, 7, flags) + encoded)
    return content_header.properties


@given(
    st.builds(
        spec.Basic.Properties,
        content_type=texts,
        headers=st.none() | st.dictionaries(names, values, max_size=5),
        delivery_mode=st.sampled_from([None, 1, 2]),
        priority=st.none() | st.integers(0, 255),
        message_id=texts,
        timestamp=st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1)),  # noqa: DTZ001
        app_id=texts,
    ),
    st.integers(0, 2**63),
)
def test_valid_properties_are_decoded_as_pamqp_does(properties: spec.Basic.Properties, size: int) -> None:
    sent = ContentHeader(body_size=size)
    sent.properties = properties
    expected, found = ContentHeader(), ContentHeader()
    DECODE_BY_PAMQP(expected, sent.marshal())
    found.unmarshal(sent.marshal())
    assert found.properties == expected.properties
    assert (found.class_id, found.body_size) == (expected.class_id, expected.body_size)


@given(st.binary(max_size=200))
def test_no_bytes_cause_an_error_other_than_that_the_frame_is_malformed(encoded: bytes) -> None:
    # After one of these errors, aiormq closes the connection. Only a broken broker sends such a frame.
    with suppress(ValueError, struct.error):
        decoded(0xFFFF, encoded)


@pytest.mark.parametrize("kind", UNDECODABLE, ids=lambda kind: kind.name)
def test_values_that_can_be_decoded_are_kept(kind: Undecodable) -> None:
    before = header(b"delivery_id", b"S", long(b"kept"))
    after = header(b"x-death", b"A", long(b"F" + table(header(b"queue", b"S", long(b"kept, too")))))
    properties = decoded(HEADERS | kind.flags, table(before + kind.headers + after) + kind.encoded)
    assert properties.headers is not None
    assert properties.headers["delivery_id"] == "kept"
    assert properties.headers["x-death"] == [{"queue": "kept, too"}]


def test_values_that_cannot_be_decoded_are_none() -> None:
    assert decoded(MESSAGE_ID, short(b"\xff")).message_id is None
    headers = header(b"time", b"T", b"\xff" * 8) + header(b"\xff", b"V", b"") + header(b"text", b"S", long(b"a\xff"))
    assert decoded(HEADERS, table(headers)).headers == {"time": None, "text": "a\\xff"}


def test_tables_are_decoded_only_to_a_limited_depth() -> None:
    value: object = decoded(HEADERS, nested(100)).headers
    depth = 0
    while isinstance(value, dict):
        value, depth = value[""], depth + 1
    assert (value, depth) == (None, 11)


def test_routing_key_that_is_not_utf_8_is_shown_with_escapes() -> None:
    deliver = frame.marshal(spec.Basic.Deliver("tag", 1, False, "exchange", "a?b"), 1).replace(b"a?b", b"a\xffb")
    _, _, received = frame.unmarshal(deliver)
    assert isinstance(received, spec.Basic.Deliver)
    assert (received.consumer_tag, received.routing_key) == ("tag", "a\\xffb")


def test_connections_are_opened_only_where_any_properties_are_accepted() -> None:
    openers = {
        path.name
        for folder in ("libs", "services")
        for path in (PROJECT / folder).rglob("src/**/*.py")
        if any(call in path.read_text() for call in ("aio_pika.connect", "RabbitBroker("))
    }
    assert openers == {"connection.py"}
