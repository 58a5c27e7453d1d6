"""Staging: a namespace for a while, in which memory stands as it stood at a place of the recorded log.

Owns: bringing the stage from one place of the log to the next, and taking away what was written on it in between. Must
not know: who writes on it, and why. Invariants: after ``stand`` every key has the value that it had for a reader at
that place, and at that time; nothing is ever written where the record is.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from agentfield.codec import Record, expires_at_ns, is_delete
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_HEADER, encode_event
from agentfield.memory.addressing import AnyScope, address
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.moment import Instant
from agentfield.memory.preparing import Write
from agentfield.memory.state import live_entries
from agentfield.memory.time_travel.past import whole
from agentfield.memory.writing import store, store_together
from agentfield.pattern import Pattern
from agentfield.replay.copying import copied
from agentfield.scope import RESOLUTION

EVERYTHING: Final = (Pattern.parse("*"),)
EVERYWHERE: Final[tuple[AnyScope, ...]] = tuple((kind, None) for kind in RESOLUTION)

_BATCH: Final = 400
_BATCH_BYTES: Final = 8 * 1024 * 1024
_FEW: Final = 16
"""Writes that are stored one by one: a batch costs the server more."""


class _Ending(NamedTuple):
    """A value that ends by itself: when, and which event it is of."""

    at: int
    subject: str
    sequence: int


class Stage:
    """The stage ``there`` for what ``source`` has recorded. ``load`` it, then ``add`` what follows."""

    def __init__(self, source: Fabric, there: Fabric) -> None:
        self._source = source
        self._there = there
        self._lifetimes = Lifetimes(Periods(workflow=None, session=None))
        self._waiting: list[tuple[Write, int | None]] = []
        self._size = 0
        self._wanted: dict[int, int] = {}
        self._endings: list[_Ending] = []
        self._timed: dict[str, int] = {}
        self._foreign: dict[str, int] = {}
        self._last = 0

    async def load(self, at: Instant) -> AsyncIterator[int]:
        """Set the stage as of an instant; gives how many keys that is so far.

        Raises :class:`HistoryTruncatedError` if the record of then is not whole any more.
        """
        count = 0
        entries = live_entries(self._source, EVERYTHING, EVERYWHERE, at=at)
        async for record in whole(self._source, entries, at):
            await self.add(record)
            count += 1
            yield count

    async def add(self, record: Record, *, wanted: bool = False) -> None:
        """What was recorded next; ``wanted``: somebody will ask for its :meth:`revision`."""
        subject = self._there.subjects.memory(*self._source.subjects.parse(record.subject))
        self._timed.pop(subject, None)
        self._foreign.pop(subject, None)
        if (ends := expires_at_ns(record)) is not None:
            self._timed[subject] = record.sequence
            heapq.heappush(self._endings, _Ending(ends, subject, record.sequence))
        # Under another id: a run that writes what was recorded may well give it the recorded id, and the server, which
        # knows an id for some time, would take the one for the other.
        write = await copied(self._source, self._there, record, cause_revision=None, event_id=new_id())
        await self._add(write, record.sequence if wanted else None)

    async def stand(self, now: int) -> None:
        """Have the stage be what it was at this place of the log, and at that time: nanoseconds since the epoch."""
        await self._clear()
        while self._endings and self._endings[0].at <= now:
            ending = heapq.heappop(self._endings)
            if self._timed.get(ending.subject) == ending.sequence:
                del self._timed[ending.subject]
                await self._add(self._end(ending.subject), None)
        await self._store()

    def revision(self, sequence: int) -> int:
        """Where an event that was wanted is on the stage, once it has been stood after that."""
        return self._wanted[sequence]

    async def written(self) -> list[Record]:
        """What others have written on the stage since it was stood, in order; the next time, that is gone."""
        found = []
        while (record := await self._there.log.at(self._last + 1)) is not None:
            self._last = record.sequence
            if address(self._there.subjects, record) is not None:
                found.append(record)
                self._foreign.setdefault(record.subject, record.sequence)
        return found

    async def _clear(self) -> None:
        """Have the keys that others have written be what they were before."""
        foreign, self._foreign = self._foreign, {}
        for subject, sequence in foreign.items():
            found = await self._there.log.as_of([subject], sequence - 1)
            before = found[0] if found and EVENT_HEADER in found[0].headers else None
            if before is None or is_delete(before):
                await self._add(self._end(subject), None)
            else:
                again = await copied(self._there, self._there, before, cause_revision=None, event_id=new_id())
                await self._add(again, None)

    async def _add(self, write: Write, wanted: int | None) -> None:
        if len(self._waiting) == _BATCH or self._size + len(write.payload) > _BATCH_BYTES:
            await self._store()
        self._waiting.append((write, wanted))
        self._size += len(write.payload)

    async def _store(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        if len(waiting) > _FEW:
            last = await store_together(self._there, self._lifetimes, [write for write, _ in waiting])
            for index, (_, wanted) in enumerate(waiting, last - len(waiting) + 1):
                self._stored(wanted, index)
            return
        for write, wanted in waiting:
            self._stored(wanted, await store(self._there, self._lifetimes, write, None))

    def _stored(self, wanted: int | None, revision: int) -> None:
        self._last = revision
        if wanted is not None:
            self._wanted[wanted] = revision

    def _end(self, subject: str) -> Write:
        scope, key = self._there.subjects.parse(subject)
        headers = encode_event(event_id=new_id(), operation="delete", writer=Writer())
        return Write(scope, key, subject, b"", headers, None)
