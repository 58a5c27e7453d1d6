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
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import aclosing

from agentfield.codec import Record
from agentfield.fabric.asking import MULTI_LAST_LIMIT
from agentfield.fabric.log import CHUNK, Log

_FEW = 8
"""Subjects for which a look at what was written shortly before does not pay."""
_CHEAP = 250_000
"""Messages that the server looks at in about ten milliseconds, as long as all the rest here takes."""
_PROBE = 1024
"""Events of the log that are looked through first, to learn how many of them matter."""
_WINDOW = 65_536
"""Events of the log that are looked through at most: surely more than a block of it holds (8 MB)."""
_LOOKS = 3
_AT_ONCE = 100
"""Subjects in one request where each takes the server a search of milliseconds, of tens of them when it is busy."""
_PER_SUBJECT = 2
"""Events worth reading for each subject looked for: to read one takes as long as the server's search for some."""


async def as_of(log: Log, filters: Sequence[str], sequence: int) -> AsyncIterator[Record]:
    """The last event, at or before ``sequence``, of every subject that a filter matches, deletes included.

    ``sequence`` must be one that the log has reached; 0 gives nothing. Filters must not overlap. In the order of the
    log, except for more than a thousand subjects. Raises :class:`UnavailableError`.
    """
    if sequence <= 0:
        return
    lost = sequence < log.held.known and log.earlier is not None
    async for record in _with_earlier(log, filters, sequence) if lost else _by_itself(log, filters, sequence):
        yield record


async def _by_itself(log: Log, filters: Sequence[str], sequence: int) -> AsyncIterator[Record]:
    """The same, by what the log holds."""
    found: list[Record] = []
    changed: dict[str, None] = {}
    many = False
    oldest = 0
    async for record in log.current(filters):
        if record.sequence <= sequence:
            found.append(record)
        else:
            changed[record.subject] = None
            oldest = min(oldest or record.sequence, record.sequence)
        many = many or len(found) + len(changed) > MULTI_LAST_LIMIT
        if many:
            for each in found:
                yield each
            found = []
    # What took so many events to be written again until now, took about as many to be written until then.
    async for record in _before(log, changed, sequence, filters, width=log.last_known - oldest + 1):
        if many:
            yield record
        else:
            found.append(record)
    for record in sorted(found, key=lambda each: each.sequence):
        yield record


async def _with_earlier(log: Log, filters: Sequence[str], sequence: int) -> AsyncIterator[Record]:
    """The same of a sequence as of which the log alone does not know everything: by what is kept of it, too."""
    begins = await log.begins()
    complete, earlier = log.held.complete, log.earlier
    found: dict[str, Record] = {}
    if earlier is not None and begins < complete:
        async for record in earlier.last(filters, min(sequence, complete - 1)):
            if sequence < complete:
                yield record
            else:
                found[record.subject] = record
    if sequence >= complete:
        async for record in _by_itself(log, filters, sequence):
            found[record.subject] = record
    for record in sorted(found.values(), key=lambda each: each.sequence):
        yield record


async def last_as_of(log: Log, subjects: Sequence[str], sequence: int) -> list[Record | None]:
    """The last event, at or before ``sequence``, of each of these literal subjects; None where there was none.

    Otherwise as :func:`as_of`.
    """
    if sequence <= 0:
        return [None] * len(subjects)
    found: dict[str, Record] = {}
    changed: dict[str, None] = {}
    if sequence < log.held.known and log.earlier is not None:
        async for record in _with_earlier(log, subjects, sequence):
            found[record.subject] = record
        return [found.get(subject) for subject in subjects]
    for last in await log.last(subjects):
        if last is not None and last.sequence <= sequence:
            found[last.subject] = last
        elif last is not None:
            changed[last.subject] = None
    async for record in _before(log, changed, sequence, (), width=0):
        found[record.subject] = record
    return [found.get(subject) for subject in subjects]


async def _before(
    log: Log, wanted: dict[str, None], sequence: int, filters: Sequence[str], *, width: int
) -> AsyncIterator[Record]:
    """The last events, by then, of subjects that have been written since; takes from ``wanted`` those it has found.

    ``width`` is how many events of the log before the sequence are likely to hold most of them.
    """
    cheap = len(wanted) * sequence <= _CHEAP
    if filters and len(wanted) > _FEW and not cheap:
        if not _PROBE < width <= _WINDOW:
            width = _PROBE
        for _ in range(_LOOKS):
            low = max(0, sequence - width)
            most = _PROBE + _PER_SUBJECT * len(wanted)
            found, count = await _look_through(log, wanted, filters, low + 1, sequence, most)
            if count > most:  # some are written far more often than others: what this costs, has to be seen first
                width = _PROBE
                continue
            for record in found:
                del wanted[record.subject]
                yield record
            sequence = low
            if not wanted or not sequence or width == _WINDOW:
                break
            width = min(_WINDOW, max(_PROBE, _PER_SUBJECT * len(wanted) * width // max(1, count)))
    if not sequence:
        return
    names = list(wanted)
    length = CHUNK if cheap else _AT_ONCE
    for start in range(0, len(names), length):
        some = names[start : start + length]
        left = some if cheap else await _begun(log, some, sequence)
        for record in await log.as_of(left, sequence) or () if left else ():
            yield record


async def _look_through(
    log: Log, wanted: Container[str], filters: Sequence[str], start: int, stop: int, most: int
) -> tuple[list[Record], int]:
    """The last events of the subjects wanted in a part of the log, and how many events there were to look at.

    If there are more than so many, it ends at that, with nothing.
    """
    last: dict[str, Record] = {}
    count = 0
    async with aclosing(log.read(filters, start=start, stop=stop)) as records:
        async for record in records:
            count += 1
            if count > most:
                return [], count
            if record.subject in wanted:
                last[record.subject] = record
    return sorted(last.values(), key=lambda each: each.sequence), count


async def _begun(log: Log, names: Sequence[str], sequence: int) -> list[str]:
    """Those of the subjects whose first event lies at or before the sequence."""
    firsts = await asyncio.gather(*(log.first_of(name) for name in names))
    return [name for name, first in zip(names, firsts, strict=True) if first is not None and first.sequence <= sequence]
