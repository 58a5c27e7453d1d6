"""A message of the log is the same record whichever way the server delivered it."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.codec import Record
from agentfield.fabric.records import nanoseconds_of, of_consumer, of_direct, of_leader
from agentfield.fabric.wire.message import Message

AT = 1_795_344_077_102_841_850
TIME = "2026-11-22T10:41:17.10284185Z"
BLOCK = b"NATS/1.0\r\nNats-Msg-Id: 1\r\nKV-Operation: DEL\r\n\r\n"


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(0, 999))  # noqa: DTZ001
def test_a_time_of_the_server_is_exact_to_the_nanosecond(moment: datetime, nanoseconds: int) -> None:
    fraction = f"{moment.microsecond * 1000 + nanoseconds:09d}".rstrip("0")
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + (f".{fraction}" if fraction else "") + "Z"
    since = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    assert nanoseconds_of(text) == since // timedelta(microseconds=1) * 1000 + nanoseconds


def test_the_three_ways_agree() -> None:
    headers = {"Nats-Msg-Id": "1", "KV-Operation": "DEL"}
    direct = of_direct(
        Message(
            "_INBOX.x",
            "",
            {**headers, "Nats-Subject": "a.b", "Nats-Sequence": "7", "Nats-Time-Stamp": TIME, "Nats-Stream": "S"},
            b"x",
        )
    )
    leader = of_leader(
        {
            "subject": "a.b",
            "seq": 7,
            "time": TIME,
            "hdrs": base64.b64encode(BLOCK).decode(),
            "data": base64.b64encode(b"x").decode(),
        }
    )
    consumer = of_consumer(Message("a.b", f"$JS.ACK.S.C.1.7.3.{AT}.2", headers, b"x"))
    for record in (direct, leader, consumer.record):
        assert (record.subject, record.sequence, record.timestamp, record.payload) == ("a.b", 7, AT, b"x")
        assert headers.items() <= record.headers.items()
    assert (consumer.consumer_sequence, consumer.pending) == (3, 2)


def test_a_message_without_headers_and_payload_has_neither() -> None:
    assert of_leader({"subject": "a", "seq": 1, "time": TIME}) == Record("a", 1, AT, {}, b"")


@pytest.mark.parametrize(
    "reply",
    [
        f"$JS.ACK.S.C.1.7.3.{AT}.2",
        f"$JS.ACK.domain.hash.S.C.1.7.3.{AT}.2",
        f"$JS.ACK._.hash.S.C.1.7.3.{AT}.2.token",
    ],
)
def test_a_delivery_is_read_with_or_without_a_domain(reply: str) -> None:
    delivery = of_consumer(Message("a", reply, {}, b""))
    assert (delivery.record.sequence, delivery.consumer_sequence, delivery.record.timestamp, delivery.pending) == (
        7,
        3,
        AT,
        2,
    )
    assert delivery.reply == reply
