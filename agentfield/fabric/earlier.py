"""What came before the log begins, for a log that was trimmed: kept elsewhere, and read through the log all the same.

Owns: what is asked of whoever keeps it. Must not know: who that is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from agentfield.codec import Record


class Earlier(Protocol):
    """Keeps a beginning of the log.

    Asked only for what lies before the revision from which the log itself is complete. ``log`` tells which log is
    meant: its stream, and when that was made. Raises :class:`~agentfield.InvalidInputError`, naming itself, if it is of
    another log or does not reach the revision ``needed``, and :class:`~agentfield.DecodeError` if it is damaged.
    """

    async def begins(self, stream: str, created: int, needed: int) -> int:
        """The first revision it covers, having seen that it is of that log and goes up to ``needed``."""

    def read(self, filters: Sequence[str], start: int, stop: int) -> AsyncGenerator[Record, None]:
        """The messages that match, in order, from revision ``start`` to ``stop``."""

    def last(self, filters: Sequence[str], sequence: int) -> AsyncGenerator[Record, None]:
        """The last message, at or before ``sequence``, of every subject that matches, in order."""

    async def at(self, sequence: int) -> Record | None:
        """The message with this revision, None if there was none."""

    async def sequence_at(self, nanoseconds: int) -> int | None:
        """The revision of the first message that was stored at or after a time; None if it has none."""
