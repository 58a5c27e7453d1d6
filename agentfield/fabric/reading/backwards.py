"""Reading the log from its end towards its beginning, a block at a time.

A consumer only ever goes forward. So windows of the log are read forward, each before the one that was read last; how
wide they are follows from how much of them matches. Owns: the windows. Must not know: what events mean. Invariant: all
matching events of the slice, each once, in blocks that come newest first and hold their events oldest first; a block
is bounded, in events and in bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from agentfield.codec import Record
from agentfield.fabric.log import Log
from agentfield.fabric.reader import Reader

BLOCK = 1000
"""Events that a block holds at most, so that one multi-get can ask for all their subjects."""
_BLOCK_BYTES = 16 * 1024 * 1024
_NARROWEST = 64
_WIDER = 8
"""A window of which less than an eighth of a block matched is followed by one so many times as wide."""


async def backwards(
    log: Log, filters: Sequence[str], *, start: int, stop: int, few: int = BLOCK
) -> AsyncIterator[list[Record]]:
    """The matching events from sequence ``stop`` back to ``start``, in blocks; ``few``: how many may be wanted."""
    width = max(_NARROWEST, 2 * min(few, BLOCK))
    if start >= log.held.complete:
        async with Reader(log.connection, log.stream, filters, start=start, patience=log.timeout) as reader:
            if reader.pending <= BLOCK:
                width = stop - start + 1  # so few from there to the log's end that they are one block
    high = stop
    while high >= start:
        low = max(start, high - width + 1)
        block, whole = await _last_of(log.read(filters, start=low, stop=high))
        if not whole:
            low = block[0].sequence
            width = max(_NARROWEST, (high - low + 1))
        elif len(block) < BLOCK // 8:
            width *= _WIDER
        if block:
            yield block
        high = low - 1


async def _last_of(records: AsyncIterator[Record]) -> tuple[list[Record], bool]:
    """As many of the last records as a block may hold, and whether that is all of them."""
    kept: deque[Record] = deque()
    size = 0
    whole = True
    async for record in records:
        kept.append(record)
        size += len(record.payload)
        while len(kept) > 1 and (len(kept) > BLOCK or size > _BLOCK_BYTES):
            size -= len(kept.popleft().payload)
            whole = False
    return list(kept), whole


async def in_blocks(records: AsyncIterator[Record], length: int) -> AsyncIterator[list[Record]]:
    """The records in their order, in blocks of at most so many, each bounded in bytes."""
    block: list[Record] = []
    size = 0
    async with aclosing(records):  # type: ignore[type-var]
        async for record in records:
            block.append(record)
            size += len(record.payload)
            if len(block) >= length or size > _BLOCK_BYTES:
                yield block
                block, size = [], 0
    if block:
        yield block
