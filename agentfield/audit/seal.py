"""Seals: signed statements that a stretch of the log held these messages and no others.

Pure. A seal is a message of its own stream: its body is a JSON object, and one header holds who signed it and the
signature over the body's bytes, exactly as stored. It names the chain's value before and after its stretch, so seals
and log hang together; the hash of the seal before it, so that none can be taken out; and a short digest of each
message, so that a verifier can say which one differs, even where others are gone.

Invariant: a seal that ``check`` finds nothing wrong with was made by its key and follows the seal before it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from agentfield.audit.chain import SHORT, genesis
from agentfield.audit.nkey import Signer, is_signed_by
from agentfield.errors import InvalidInputError
from agentfield.naming import shown

SEAL_HEADER: Final = "Agentfield-Seal"
MAX_EVENTS: Final = 20_000
"""Messages that one seal may cover: 22 bytes each, and a seal has to fit into one message."""

_VERSION: Final = 1
_NUMBERS: Final = ("number", "first", "last", "first_time", "last_time", "created", "sealed")
_HASHES: Final = ("before", "after", "previous")


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal says."""

    stream: str
    created: int
    """When the server made the log's stream: nanoseconds since the epoch. One that was made anew has another time."""
    number: int
    """The first seal is 1; it is also the seal's sequence in its own stream."""
    previous: bytes
    """The hash of the seal before, 32 zero bytes for the first."""
    first: int
    last: int
    first_time: int
    last_time: int
    """Sequence and time of the first and the last message; there is one for every sequence between."""
    before: bytes
    after: bytes
    """The chain's value before the first message and after the last."""
    sealed: int
    """When it was made, by the server's clock."""
    digests: bytes
    """The first 16 bytes of each message's digest, in their order."""

    @property
    def count(self) -> int:
        """How many messages it covers."""
        return self.last - self.first + 1

    def digest(self, sequence: int) -> bytes:
        """The short digest of one of the messages."""
        at = (sequence - self.first) * SHORT
        return self.digests[at : at + SHORT]

    def body(self) -> bytes:
        """The JSON object that is signed and stored."""
        fields: dict[str, Any] = {"agentfield_seal": _VERSION, "stream": self.stream}
        fields |= {name: getattr(self, name) for name in _NUMBERS}
        fields |= {"count": self.count}
        fields |= {name: getattr(self, name).hex() for name in _HASHES}
        fields["digests"] = base64.b64encode(self.digests).decode()
        return orjson.dumps(fields)

    @classmethod
    def of(cls, body: bytes) -> Seal:
        """The seal that ``body()`` wrote. Raises InvalidInputError, with what is wrong, if it is none."""
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(f"it is not JSON ({error})") from error
        if not isinstance(fields, dict) or fields.get("agentfield_seal") != _VERSION:
            raise InvalidInputError(f"it is not a JSON object with agentfield_seal {_VERSION}")
        if not isinstance(fields.get("stream"), str):
            raise InvalidInputError("it names no stream")
        numbers: dict[str, Any] = {name: fields.get(name) for name in _NUMBERS}
        for name, number in numbers.items():
            if type(number) is not int or number < 0:
                raise InvalidInputError(f"its {name} is {shown(number)}")
        try:
            hashes: dict[str, Any] = {name: bytes.fromhex(fields[name]) for name in _HASHES}
            digests = base64.b64decode(fields["digests"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise InvalidInputError("its hashes are not legible") from None
        seal = cls(stream=fields["stream"], digests=digests, **numbers, **hashes)
        if any(len(hash) != 32 for hash in hashes.values()):
            raise InvalidInputError("its hashes have not 32 bytes")
        if seal.first < 1 or not 1 <= seal.count <= MAX_EVENTS or len(digests) != seal.count * SHORT:
            raise InvalidInputError(f"it says {seal.first} to {seal.last}, and holds {len(digests) // SHORT} digests")
        return seal


class SignedSeal(NamedTuple):
    """A seal as it is stored: the bytes that were signed, by whom, and the signature."""

    sequence: int
    """Its place in the stream of seals."""
    body: bytes
    key: str
    signature: bytes

    @property
    def hash(self) -> bytes:
        """What the next seal names as the one before it."""
        return sha256(self.body + self.signature).digest()

    @property
    def headers(self) -> dict[str, str]:
        """The header that says who signed it."""
        signature = base64.b64encode(self.signature).decode()
        return {SEAL_HEADER: orjson.dumps({"v": _VERSION, "key": self.key, "signature": signature}).decode()}

    @classmethod
    def of(cls, sequence: int, headers: Mapping[str, str], payload: bytes) -> SignedSeal:
        """The seal of a stored message. What is no seal at all becomes one that nobody has signed."""
        try:
            fields = orjson.loads(headers.get(SEAL_HEADER, ""))
            return cls(sequence, payload, str(fields["key"]), base64.b64decode(fields["signature"], validate=True))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, binascii.Error):
            return cls(sequence, payload, "", b"")

    def open(self) -> Seal:
        """What it says, whoever said it. Raises InvalidInputError if it says nothing that a seal says."""
        return Seal.of(self.body)


NO_SEAL: Final = bytes(32)
"""Named by the first seal as the hash of the one before it."""


def signed(seal: Seal, signer: Signer) -> SignedSeal:
    """The seal with its signature."""
    body = seal.body()
    return SignedSeal(seal.number, body, signer.public, signer.sign(body))


class Head(NamedTuple):
    """The last seal that was looked at, or where the first one begins."""

    number: int
    hash: bytes
    last: int
    chain: bytes

    @classmethod
    def none(cls, stream: str) -> Head:
        """Before the first seal."""
        return cls(0, NO_SEAL, 0, genesis(stream))

    @classmethod
    def at(cls, signed_seal: SignedSeal, seal: Seal) -> Head:
        """After a seal."""
        return cls(seal.number, signed_seal.hash, seal.last, seal.after)


def fault_of(signed_seal: SignedSeal, stream: str, head: Head, trusted: Collection[str]) -> str | None:
    """What is wrong with a seal that should follow ``head``; None if nothing is. It says nothing about the log."""
    number = signed_seal.sequence
    if number != head.number + 1:
        gone = f"seal {head.number + 1}" if number == head.number + 2 else f"seals {head.number + 1} to {number - 1}"
        return f"{gone} missing: after seal {head.number} comes seal {number}"
    if not signed_seal.key:
        return f"seal {number} is forged: nobody has signed it"
    if signed_seal.key not in trusted:
        return f"seal {number} is signed by {signed_seal.key}, which is none of the keys that are trusted"
    if not is_signed_by(signed_seal.key, signed_seal.signature, signed_seal.body):
        return f"seal {number} is forged or was changed: its signature does not hold"
    try:
        seal = signed_seal.open()
    except InvalidInputError as error:
        return f"seal {number} cannot be read: {error}"
    if seal.stream != stream:
        return f"seal {number} is of another log: {seal.stream}"
    if seal.number != number or seal.previous != head.hash:
        return f"seal {number} does not follow the seal before it: one of them was replaced or moved"
    if seal.before != head.chain or seal.first <= head.last:
        return f"seal {number} does not go on where the seal before it ends"
    return None
