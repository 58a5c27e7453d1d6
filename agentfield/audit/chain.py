"""The digest of a stored message, and the chain of digests over a log.

Pure. Everything that the server keeps of a message goes into its digest: when it was stored, under which subject, the
headers byte for byte, the payload. Its sequence goes into the chain, so that a message keeps its digest where somebody
moves it, and can be recognised there. Each hashed text begins with what it is and which version of these rules made it,
and every part of variable length follows its length: no two different messages hash the same bytes.

Invariant: two logs with equal chain values after the same sequence hold the same messages in the same places.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple

SHORT: Final = 16
"""Bytes of a digest that a seal keeps for each event: 128 bits are enough to tell which one differs."""

_MESSAGE: Final = b"agentfield message 1\0"
_LINK: Final = b"agentfield link 1\0"
_GENESIS: Final = b"agentfield genesis 1\0"
_PARTS: Final = struct.Struct(">qIIQ")
_SEQUENCE: Final = struct.Struct(">Q")


class Stored(NamedTuple):
    """A message exactly as the server keeps it."""

    subject: str
    """Bytes of it that are not UTF-8 are escaped as Python's ``surrogateescape`` does it."""
    sequence: int
    timestamp: int
    """When the server stored it: nanoseconds since the epoch."""
    headers: bytes
    """The header block, ``NATS/1.0`` and the empty line at its end included; empty if there is none."""
    payload: bytes


def digest_of(stored: Stored) -> bytes:
    """The SHA-256 digest of everything that the server keeps of a message, its sequence apart."""
    name, _, timestamp, headers, payload = stored
    subject = name.encode("utf-8", "surrogateescape")
    parts = _PARTS.pack(timestamp, len(subject), len(headers), len(payload))
    return sha256(b"".join((_MESSAGE, parts, subject, headers, payload))).digest()


def digests_of(
    subjects: Iterable[str], timestamps: Iterable[int], headers: Iterable[bytes], payloads: Iterable[bytes]
) -> list[bytes]:
    """The digests of many messages, given column by column."""
    pack, digests = _PARTS.pack, list[bytes]()
    for name, timestamp, block, payload in zip(subjects, timestamps, headers, payloads, strict=True):
        subject = name.encode("utf-8", "surrogateescape")
        parts = pack(timestamp, len(subject), len(block), len(payload))
        digests.append(sha256(b"".join((_MESSAGE, parts, subject, block, payload))).digest())
    return digests


def genesis(stream: str) -> bytes:
    """What the chain over a stream begins with, before its first message."""
    return sha256(_GENESIS + stream.encode()).digest()


def link(chain: bytes, sequence: int, digest: bytes) -> bytes:
    """The chain's value after a message."""
    return sha256(_LINK + chain + _SEQUENCE.pack(sequence) + digest).digest()


def chained(chain: bytes, messages: Iterable[tuple[int, bytes]]) -> bytes:
    """The chain's value after several messages, each given by its sequence and its digest."""
    for sequence, digest in messages:
        chain = sha256(_LINK + chain + _SEQUENCE.pack(sequence) + digest).digest()
    return chain
