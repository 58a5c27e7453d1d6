"""The log as it was: the last event of each subject at or before a sequence, for any number of subjects.

Owns: finding it at a price that does not grow with the log. The server answers that question itself, but slowly: for a
subject that has been written since, it looks at every message before the sequence in the block of the log that holds
it, and for one that did not exist by then, at every block from there to the first. So it is asked only for what is
left: what has not changed since is what the present says, what was written shortly before is read off the log, and what
began later is told by its first event. Must not know: keys, scopes, times. Invariant: each subject once, with its last
event at or before the sequence; none that had no event by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from agentfield.codec import Record
from agentfield.fabric.log import CHUNK, MULTI_LAST_LIMIT, Log

_FEW = 8
"""Subjects for which a look at what was written shortly before does not pay."""
_CHEAP = 250_000
"""Messages that the server looks at in about ten milliseconds, as long as all the rest here takes."""
_PROBE = 1024
"""Events of the log that are looked through first, to learn how many of them matter."""
_WINDOW = 65_536
"""Events of the log that are looked through at most: surely more than a block of it holds (8 MB)."""
_LOOKS = 3
_PER_SUBJECT = 2
"""Events worth reading for each subject looked for: to read one takes as long as the server's search for some."""


async def as_of(log: Log, filters: Sequence[str], sequence: int) -> AsyncIterator[Record]:
    """The last event, at or before ``sequence``, of every subject that a filter matches, deletes included.

    ``sequence`` must be one that the log has reached; 0 gives nothing. Filters must not overlap. In the order of the
    log, except for more than a thousand subjects. Raises :class:`UnavailableError`.
    """
    if sequence <= 0:
        return
    found: list[Record] = []
    changed: list[str] = []
    many = False
    async for record in log.current(filters):
        if record.sequence <= sequence:
            found.append(record)
        else:
            changed.append(record.subject)
        many = many or len(found) + len(changed) > MULTI_LAST_LIMIT
        if many:
            if len(changed) >= CHUNK:
                found += await _before(log, changed, sequence, filters)
                changed = []
            for each in found:
                yield each
            found = []
    found += await _before(log, changed, sequence, filters)
    for record in sorted(found, key=lambda each: each.sequence):
        yield record


async def last_as_of(log: Log, subjects: Sequence[str], sequence: int) -> list[Record | None]:
    """The last event, at or before ``sequence``, of each of these literal subjects; None where there was none.

    Otherwise as :func:`as_of`.
    """
    if sequence <= 0:
        return [None] * len(subjects)
    found: dict[str, Record] = {}
    changed: list[str] = []
    for record in await log.last(subjects):
        if record is not None and record.sequence <= sequence:
            found[record.subject] = record
        elif record is not None:
            changed.append(record.subject)
    for start in range(0, len(changed), CHUNK):
        some = changed[start : start + CHUNK]
        found.update((record.subject, record) for record in await _before(log, some, sequence, ()))
    return [found.get(subject) for subject in subjects]


async def _before(log: Log, subjects: Sequence[str], sequence: int, filters: Sequence[str]) -> list[Record]:
    """The last events, by then, of subjects (at most a chunk) that have been written since."""
    if len(subjects) * sequence <= _CHEAP:
        return await log.as_of(subjects, sequence) or [] if subjects else []
    wanted = dict.fromkeys(subjects)
    found: dict[str, Record] = {}
    if filters and len(wanted) > _FEW:
        sequence = await _look_back(log, wanted, found, sequence, filters)
    left = await _begun(log, wanted, sequence)
    return [*found.values(), *(await log.as_of(left, sequence) or () if left and sequence else ())]


async def _look_back(
    log: Log, wanted: dict[str, None], found: dict[str, Record], sequence: int, filters: Sequence[str]
) -> int:
    """Read what was written shortly before, moving subjects from ``wanted`` to ``found``; return up to where."""
    width = _PROBE
    for _ in range(_LOOKS):
        if not wanted or not sequence:
            break
        low = max(0, sequence - width)
        count = 0
        last: dict[str, Record] = {}
        async for record in log.read(filters, start=low + 1, stop=sequence):
            count += 1
            if record.subject in wanted:
                last[record.subject] = record
        for subject in last:
            del wanted[subject]
        found |= last
        sequence = low
        if width == _WINDOW:
            break
        worth = _PER_SUBJECT * len(wanted) * width // max(1, count)
        width = min(_WINDOW, max(_PROBE, worth))
    return sequence


async def _begun(log: Log, subjects: Iterable[str], sequence: int) -> list[str]:
    """Those of the subjects whose first event lies at or before the sequence."""
    names = list(subjects)
    firsts = await asyncio.gather(*(log.first_of(name) for name in names))
    return [name for name, first in zip(names, firsts, strict=True) if first is not None and first.sequence <= sequence]
