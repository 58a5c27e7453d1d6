"""Envelopes: a value's JSON, encrypted, as JSON that any tool can show.

Owns: the cipher (AES-256-GCM) and the envelope's form. Pure: keys and nonces are given. Invariant: what ``close_up``
made, ``open_up`` opens with the same data key, on the same subject, for the same event, and in no other place: the
subject and the event's id are authenticated with it, so that a ciphertext cannot pass for another event's.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agentfield.errors import InvalidInputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""96 random bits: one data key may encrypt 2^32 values before two of the same become likely (NIST SP 800-38D, 8.3)."""
ENVELOPE: Final = "agentfield_encrypted"
_CIPHER = "AES-256-GCM"


class DataKey(NamedTuple):
    """A data key and its name."""

    fingerprint: str
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> DataKey:
        """The key of these 32 bytes."""
        return cls(sha256(secret).hexdigest()[:32], secret)

    def __repr__(self) -> str:
        return f"<DataKey {self.fingerprint}>"


class WrongEnvelope(Exception):
    """It is no envelope, or was changed, or moved from another event."""


def close_up(key: DataKey, nonce: bytes, content: bytes, subject: str, event_id: str) -> bytes:
    """The envelope, as JSON, that holds a value's JSON. ``nonce`` must never be used again with that key."""
    data = _cipher(key).encrypt(nonce, content, _bound_to(subject, event_id))
    fields = {"cipher": _CIPHER, "key": key.fingerprint, "nonce": _text(nonce), "data": _text(data)}
    return orjson.dumps({ENVELOPE: fields})


def open_up(key: DataKey, envelope: bytes | bytearray, subject: str, event_id: str) -> bytes:
    """The value's JSON. Raises :class:`WrongEnvelope`."""
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag

    try:
        fields = orjson.loads(envelope)[ENVELOPE]
        if fields["cipher"] != _CIPHER:
            raise WrongEnvelope(f"it is encrypted with {fields['cipher']!r}, and this agentfield knows {_CIPHER}")
        nonce, data = b64decode(fields["nonce"], validate=True), b64decode(fields["data"], validate=True)
        return cipher.decrypt(nonce, data, _bound_to(subject, event_id))
    except (KeyError, TypeError, ValueError) as error:
        raise WrongEnvelope(f"what it holds is no envelope of agentfield's ({error})") from None
    except InvalidTag:
        raise WrongEnvelope("its value was changed after it was encrypted, or belongs to another event") from None


def _cipher(key: DataKey) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise InvalidInputError(
            "this namespace keeps personal values encrypted, which needs the package cryptography: "
            '`pip install "agentfield[privacy]"`'
        ) from None
    return AESGCM(key.secret)


def _bound_to(subject: str, event_id: str) -> bytes:
    return f"agentfield\n{subject}\n{event_id}".encode()


def _text(data: bytes) -> str:
    return b64encode(data).decode()
