"""Messages of the log as :class:`~agentfield.codec.Record`, whichever way the server delivered them.

Three ways, three shapes: a direct get describes the message in ``Nats-*`` headers, a leader get wraps it in JSON with
base64, a consumer puts sequence and time into the reply subject. Pure; knows no connection.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from agentfield.codec import Record
from agentfield.fabric.wire.client import parse_headers
from agentfield.fabric.wire.message import NO_HEADERS, Message

_ACK_TOKENS = 9
"""``$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>``; with a domain, two more
tokens stand before the stream and one may follow."""


@lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp())


def nanoseconds_of(text: str) -> int:
    """Nanoseconds since the epoch of the server's RFC 3339 UTC time (``2026-11-22T10:41:17.10284185Z``)."""
    fraction = text[20:-1]
    return _seconds(text[:19]) * 1_000_000_000 + (int(fraction.ljust(9, "0")) if fraction else 0)


def of_direct(message: Message) -> Record:
    """A message of a direct get."""
    headers = message.headers
    return Record(
        headers["Nats-Subject"],
        int(headers["Nats-Sequence"]),
        nanoseconds_of(headers["Nats-Time-Stamp"]),
        headers,
        message.payload,
    )


def of_leader(message: Mapping[str, Any]) -> Record:
    """The ``message`` object of a leader get."""
    block = message.get("hdrs")
    return Record(
        message["subject"],
        message["seq"],
        nanoseconds_of(message["time"]),
        (parse_headers(base64.b64decode(block)) if block else None) or NO_HEADERS,
        base64.b64decode(message.get("data") or ""),
    )


class Delivery(NamedTuple):
    """A message of a consumer: the record, and where the consumer stands."""

    record: Record
    consumer_sequence: int
    pending: int
    reply: str


def of_consumer(message: Message) -> Delivery:
    """A message that a consumer delivered."""
    tokens = message.reply.split(".")
    at = 4 if len(tokens) == _ACK_TOKENS else 6
    return Delivery(
        Record(message.subject, int(tokens[at + 1]), int(tokens[at + 3]), message.headers, message.payload),
        int(tokens[at + 2]),
        int(tokens[at + 4]),
        message.reply,
    )
