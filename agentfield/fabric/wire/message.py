"""A message as it arrived, and what one may weigh on its way out.

Pure. Must not know: connections, what a message is for. Invariant: what is over the server's limit is never sent, since
the server would end the connection for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from agentfield.errors import InvalidInputError
from agentfield.fabric.wire.client import STATUS

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
HEADERS_AT_MOST = 65_535
"""Bytes a header block can have at all (the server's limit)."""


class Message(NamedTuple):
    """A message as it arrived."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    payload: bytes

    @property
    def status(self) -> int:
        """The inline status the server sent (0 for an ordinary message)."""
        text = self.headers.get(STATUS)
        return int(text) if text else 0


def check_size(payload: bytes, headers: Mapping[str, str] | None, limit: int) -> None:
    """Raises InvalidInputError for a message over the limit: the server would end the connection (ADR-4)."""
    size = len(payload)
    if headers:
        size += len("NATS/1.0\r\n\r\n") + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
    if size > limit:
        raise InvalidInputError(f"a message of {size} bytes is over the server's limit of {limit} bytes")
