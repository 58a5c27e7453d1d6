"""References: how an event names a value that is too large to be its payload.

Such a value's JSON lies in an object of the namespace's object store; the event's header says which one, how many bytes
it has and what their digest is, and its payload says the same to people. Pure. Invariant: a reference names an object
that was complete before the event existed and that never changes.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from typing import Any, Final, NamedTuple

import orjson

from agentfield.errors import InvalidInputError
from agentfield.naming import shown

LARGE: Final = 256 * 1024
"""Bytes of JSON above which a value becomes an object: below, one message is faster than the four an object takes."""
LARGEST: Final = 256 * 1024 * 1024
"""Bytes of JSON that a value may have at most: writer and reader hold all of it in memory, and the value besides."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"SHA-256=[A-Za-z0-9_-]{43}=")


class Reference(NamedTuple):
    """Which object holds a value, and how to know that it is whole."""

    name: str
    digest: str
    """``SHA-256=`` and the hash in URL-safe base64, as object stores write it (ADR-20)."""
    size: int
    """Bytes of JSON."""

    @classmethod
    def of(cls, fields: Any) -> Reference:
        """The reference that ``fields()`` became in a header. Raises InvalidInputError if it is none."""
        if isinstance(fields, dict):
            name, digest, size = fields.get("name"), fields.get("digest"), fields.get("size")
            if (
                (isinstance(name, str) and is_object_name(name))
                and (isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None)
                and (type(size) is int and 0 < size <= LARGEST)
            ):
                return cls(name, digest, size)
        raise InvalidInputError(f"names its object wrongly: {shown(fields)}")

    def fields(self) -> dict[str, Any]:
        """The reference as the event's header holds it."""
        return self._asdict()

    def payload(self, bucket: str) -> bytes:
        """What the event holds in the value's place, for people and for clients that know nothing of agentfield."""
        return orjson.dumps({"object": self.name, "bucket": bucket, "digest": self.digest, "size": self.size})


def is_object_name(text: str) -> bool:
    """Whether objects may be called that: one plain token, so that it can stand in any subject."""
    return _NAME.fullmatch(text) is not None


def digest_text(sha256: bytes) -> str:
    """A SHA-256 hash as references and object stores write it."""
    return "SHA-256=" + urlsafe_b64encode(sha256).decode()


def check_size(size: int, key: str) -> None:
    """Raises InvalidInputError if a value of so many bytes of JSON is over the limit."""
    if size > LARGEST:
        raise InvalidInputError(
            f"the value of {shown(key)} is {size:,} bytes as JSON, and a value may have {LARGEST:,} (256 MiB): store "
            f"less, or split it over several keys; nothing was written"
        )
