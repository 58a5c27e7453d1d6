"""Present values: the last event of every key as of one sequence, the seam between what was and what comes.

Must not know: what a value is, or whether it has expired; a delete is no present value. Invariant: with the events
after the seam, the events given here are for each key a run of its history without a gap or a repeat, up to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from agentfield.codec import Record, is_delete
from agentfield.fabric.log import Log

_AHEAD = 64
"""Values whose previous ones are looked up together: each takes the server long, and the way there and back longer."""


class Present(NamedTuple):
    """A present value, and the event of its key just before it, if there was one."""

    record: Record
    previous: Record | None


async def present_values(
    log: Log, filters: Sequence[str], seam: int, *, after: int = 0
) -> AsyncGenerator[Present, None]:
    """The last event of every subject at ``seam``, those with sequences after ``after``, in the order of the log.

    Of more than 1,024 subjects, those that have changed since the seam are left out: their changes come after it, the
    first of them with what the key had held. Raises :class:`UnavailableError`.
    """
    ahead: list[Record] = []
    async with aclosing(_last_values(log, filters, seam, after)) as records:
        async for record in records:
            ahead.append(record)
            if len(ahead) == _AHEAD:
                for value in await _with_previous(log, ahead):
                    yield value
                ahead.clear()
    for value in await _with_previous(log, ahead):
        yield value


async def _with_previous(log: Log, records: Sequence[Record]) -> list[Present]:
    previous = await asyncio.gather(*map(log.before, records))
    return [Present(*pair) for pair in zip(records, previous, strict=True)]


async def _last_values(log: Log, filters: Sequence[str], seam: int, after: int) -> AsyncGenerator[Record, None]:
    records = await log.as_of(filters, seam)
    if records is not None:
        for record in records:
            if record.sequence > after and not is_delete(record):
                yield record
        return
    async with aclosing(log.last_of_each(filters)) as last:
        async for record in last:
            if after < record.sequence <= seam:
                after = record.sequence  # after an interruption they come from the beginning again
                if not is_delete(record):
                    yield record
