"""Keys that sign: nkeys, as NATS writes them, which are Ed25519 keys in base32 with a checksum.

Owns: their text form, making them, signing and checking. Any nkey of an account, user, operator, server or cluster
signs; ours are account keys, which no server is ever asked to take a signature of. Source: the nkeys format of NATS
(github.com/nats-io/nkeys). Its package for Python cannot check a signature by the public key alone, so this does.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Final

from agentfield.errors import InvalidInputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SEED: Final = 18 << 3
_ACCOUNT: Final = 0
_KINDS: Final = {0: "account", 20 << 3: "user", 14 << 3: "operator", 13 << 3: "server", 2 << 3: "cluster"}
_LENGTH: Final = 32


class Signer:
    """A key that can sign. Made by :meth:`of_seed` or :meth:`generate`; its ``repr`` shows the public half alone."""

    def __init__(self, kind: int, secret: bytes) -> None:
        self._private = _private_key(secret)
        self._secret = secret
        self._kind = kind
        self.public = _encoded(bytes([kind]) + self._private.public_key().public_bytes_raw())
        """The public key, as ``audit verify`` takes it."""

    def __repr__(self) -> str:
        return f"<Signer {self.public}>"

    @classmethod
    def generate(cls) -> Signer:
        """A new key of the system's randomness."""
        return cls(_ACCOUNT, os.urandom(_LENGTH))

    @classmethod
    def of_seed(cls, text: str) -> Signer:
        """The key of a seed (``SA…``, ``SU…``, …). Raises InvalidInputError if it is none; the text is not repeated."""
        raw = _decoded(text.strip())
        if raw is None or len(raw) != _LENGTH + 2 or raw[0] & 0xF8 != _SEED:
            raise InvalidInputError("the key file holds no nkey seed: make one with `agentfield audit keygen FILE`")
        kind = (raw[0] & 7) << 5 | raw[1] >> 3
        if kind not in _KINDS:
            raise InvalidInputError("the key file holds a seed of a kind that does not sign: make one with keygen")
        return cls(kind, raw[2:])

    @property
    def seed(self) -> str:
        """The secret half, to be kept in a file that nobody else can read."""
        return _encoded(bytes([_SEED | self._kind >> 5, (self._kind & 31) << 3]) + self._secret)

    def sign(self, content: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        return self._private.sign(content)


def check_public_key(text: str) -> str:
    """The public key itself. Raises InvalidInputError if it is none."""
    if _public_bytes(text) is None:
        hint = " (this is a seed: keep it secret)" if text.startswith("S") else ""
        raise InvalidInputError(f"{text[:8]!r}… is no public nkey{hint}: give what `agentfield audit keygen` printed")
    return text


def is_signed_by(public: str, signature: bytes, content: bytes) -> bool:
    """Whether a signature is that key's over that content; a text that is no public key has signed nothing."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _public_bytes(public)
    if raw is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, content)
    except InvalidSignature:
        return False
    return True


def require_cryptography() -> None:
    """Raises InvalidInputError, with the remedy, where the package that signs is missing."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError:
        raise InvalidInputError('seals need the package cryptography: `pip install "agentfield[audit]"`') from None


def _private_key(secret: bytes) -> Ed25519PrivateKey:
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(secret)


def _public_bytes(text: str) -> bytes | None:
    raw = _decoded(text)
    if raw is None or len(raw) != _LENGTH + 1 or raw[0] not in _KINDS:
        return None
    return raw[1:]


def _encoded(raw: bytes) -> str:
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()


def _decoded(text: str) -> bytes | None:
    """The bytes of an nkey without their checksum, None if it does not hold."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    content, checksum = raw[:-2], raw[-2:]
    valid = binascii.crc_hqx(content, 0).to_bytes(2, "little") == checksum and _encoded(content) == text
    return content if valid else None
