"""Every message of the log as it is stored, locks and checks included: what archives and seals are made of.

Owns: the reader, where it begins on a log that was trimmed, and waiting for what comes. Must not know: how many
messages are taken together. Invariant: each message once, in the order of the log; waiting for a while costs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from agentfield import HistoryTruncatedError
from agentfield.audit.source import Live
from agentfield.codec import Record
from projections.source import Source

_TAKEN: Final = 500
"""Messages taken over at a time."""


class Messages:
    """The messages from sequence ``start`` on; an async context manager.

    On a log that was trimmed since, they begin where it is complete; with ``gapless``, entering raises
    :class:`HistoryTruncatedError` then, unless they are wanted from the first.
    """

    def __init__(self, source: Source, start: int, *, gapless: bool = False) -> None:
        self._source = source
        self._start = start
        self._gapless = gapless
        self._reader = Live(source.fabric).reader(start)
        self._coming: asyncio.Task[list[Record]] | None = None

    async def __aenter__(self) -> Self:
        await self._source.fabric.log.state()
        complete = self._source.fabric.log.held.complete
        if self._start < complete:
            if self._gapless and self._start > 1:
                raise HistoryTruncatedError(requested=self._start, first_available=complete)
            self._reader = Live(self._source.fabric).reader(complete)
        await self._reader.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        await self._reader.aclose()

    async def some(self, patience: float | None) -> list[Record]:
        """The next ones; none if none came within ``patience`` seconds. Without that, it waits for one."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._reader.some(_TAKEN), name="messages of the log")
        await asyncio.wait({self._coming}, timeout=patience)
        if not self._coming.done():
            return []
        records, self._coming = self._coming.result(), None
        return records

    def until(self, target: int) -> AsyncIterator[Record]:
        """Those up to sequence ``target``, which the log has reached; then the end."""
        return self._reader.until(target)
