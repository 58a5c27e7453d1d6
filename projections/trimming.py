"""Trimming the log up to where an archive holds it, and no further than anybody still needs it.

Owns: what holds trimming back, and that the archive is read back and compared before anything goes. How the log is
trimmed is ``agentfield.fabric.trimming``'s. Invariants: what goes is in the archive, byte for byte; what any key holds,
and held since the revision from which the log stays complete, goes on to be in the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentfield import ConflictError, NotFoundError, ProjectionError
from agentfield.archive.notes import TRIMMING, Note, leave, left
from agentfield.fabric import trimming
from agentfield.fabric.trimming import Need, Step
from projections.archive import Archive, Archiver, compared
from projections.source import Source
from projections.stores import Stores
from projections.stores.archive import NAME, ArchiveView
from projections.view import Head, View, looking

_LEASE: Final = "archive-trimming"
_CATCHES_UP: Final = 1.0
"""Seconds in which handlers and projections that are running have taken what was there when the log was frozen."""
_LOOK: Final = 0.1
PROJECTION: Final = "the projection "
REBUILD: Final = "the unfinished rebuild of the projection "
"""What a view is called that holds trimming back, before its name."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """How far the log could be trimmed at this moment."""

    begins: int
    """From which revision on the log is complete."""
    complete: int
    """From which on it could be: all before that is in the archive, and needed by nobody."""
    archived: int
    """Up to which revision the archive goes."""
    last: int
    """The log's last revision."""
    messages: int
    """How many messages the log holds."""
    held_by: Need | None
    """Who needs what is archived from ``complete`` on, if anybody does."""


async def outlook(source: Source, stores: Stores) -> Outlook:
    """How far the log can be trimmed: as far as it is archived and nobody needs it.

    Raises :class:`NotFoundError` if there is no archive, :class:`ProjectionError` if it is not one of this log, and as
    reading it does.
    """
    view = await _archive(stores)
    segments = await view.segments()
    await view.check_log()
    state = await source.fabric.log.state()
    begins, last = source.fabric.log.held.complete, int(state["last_seq"])
    archived = segments[-1].last
    if segments[0].first > begins or archived < begins - 1:
        raise ProjectionError(
            f"the archive {view.place} holds revisions {segments[0].first} to {archived}, and the log begins at "
            f"{begins}: begin another archive, in another directory, so that one of them holds everything",
            projection=NAME,
        )
    first = segments[0].first
    if first > 1 and Note(first, first) not in await left(source.fabric.log):
        raise ProjectionError(
            f"the archive {view.place} begins at revision {first}, and the log knows of no archive that "
            "began there: its beginning was taken away; put it back, or begin another archive, in another directory",
            projection=NAME,
        )
    needs = await _needs(source, stores)
    held_by = needs[0] if needs and needs[0].sequence <= archived else None
    complete = archived + 1 if held_by is None else held_by.sequence
    return Outlook(begins, max(complete, begins), archived, last, int(state["messages"]), held_by)


async def trim(source: Source, stores: Stores) -> AsyncGenerator[Step, None]:
    """Trim the log as far as it can be, a step at a time; in between and afterwards the log is as any other.

    Brings the archive up to date and compares it with the log first. Raises :class:`ProjectionError` if they differ,
    :class:`ConflictError` if somebody else trims the log, and as :func:`agentfield.fabric.trimming.trim`; what was
    taken out by then is in the archive, and doing it again goes on.
    """
    lease = source.lease(_LEASE)
    if await lease.taken():
        raise _busy("by another process")
    async with lease:
        await lease.wait()
        settling = _Settling(source, stores)
        await settling.archive()
        await settling.note_what_went()
        try:
            log = source.fabric.log
            async for step in trimming.trim(
                log, settling.expected, settling.announce, settling.settle, allowed=lambda: lease.held
            ):
                yield step
            await settling.note_what_went()
        except trimming.Busy as busy:
            raise _busy(str(busy)) from None


class _Settling:
    """Sees that the log is archived, and needed by nobody, up to a revision."""

    def __init__(self, source: Source, stores: Stores) -> None:
        self._source = source
        self._stores = stores
        self._compared = 0
        self._announced = False
        self._patience = _CATCHES_UP
        self._hope = _CATCHES_UP

    async def archive(self) -> None:
        """Bring the archive up to date, and compare what was not compared yet. Raises :class:`ProjectionError`."""
        view = await _archive(self._stores)
        await outlook(self._source, self._stores)
        await Archiver(self._source, Archive(), view.path).catch_up()
        verdict = await compared(self._source, await view.segments(), start=self._compared + 1)
        if not verdict.equal:
            found, expected = (" ".join(map(str, each or ("nothing",))) for each in (verdict.found, verdict.expected))
            raise ProjectionError(
                f"the archive {view.place} is not what the log says: it has {found} where {expected} should be; "
                "nothing more was trimmed: begin another archive, in another directory",
                projection=NAME,
            )
        self._compared = verdict.checkpoint

    async def expected(self) -> int:
        """From which revision on the log would have to stay complete now."""
        patience, self._hope = self._hope, 0.0
        return await self._complete(patience)

    async def announce(self) -> None:
        """Have the log say, once, that from now on it is trimmed; what is noted afterwards says how far."""
        if not self._announced:
            await self._note(TRIMMING)
            await self.archive()  # now, and not while nobody can write
            self._announced = True

    async def note_what_went(self) -> None:
        """See that the log says of what has left it that it is in the archive, also if whoever took it out died."""
        complete = self._source.fabric.log.held.complete
        if complete > 1 and await self._note(complete):
            await self.archive()  # so that the note is not what next holds trimming back

    async def _note(self, complete: int) -> bool:
        segments = await (await _archive(self._stores)).segments()
        return await leave(self._source.fabric.log, Note(segments[0].first, complete))

    async def settle(self, last: int) -> int:
        """From which revision on a log that ends at ``last`` must stay complete."""
        if self._compared < last:
            await self.archive()
        patience, self._patience = self._patience, 0.0
        return min(await self._complete(patience), self._compared + 1)

    async def _complete(self, patience: float) -> int:
        """The same of what is archived, when nobody needs it any more, or after so many seconds."""
        deadline = time.monotonic() + patience
        while True:
            found = await outlook(self._source, self._stores)
            if found.held_by is None or time.monotonic() > deadline:
                return found.complete
            await asyncio.sleep(_LOOK)


def _busy(who: str) -> ConflictError:
    message = f"the log is being trimmed already ({who}): try again in a minute"
    return ConflictError(NAME, expected=None, actual=None, message=message)


async def _archive(stores: Stores) -> ArchiveView:
    view = await stores.archive.live(NAME)
    if view is None:
        raise NotFoundError(
            f"there is no archive in {stores.archive.path}: make one with `agentfield projections run archive`"
        )
    return view


async def _needs(source: Source, stores: Stores) -> list[Need]:
    """Who still needs what of the log: consumers, and views, seals among them; the oldest first."""
    found = await trimming.needs(source.fabric.log)
    log = await source.log_id()
    for name in await stores.names():
        if name == NAME:
            continue
        for what, find in ((PROJECTION, stores.live), (REBUILD, stores.building)):
            head = await looking(partial(_head, find, name))
            if head is not None and head.log == log and await source.lag(head.selection, head.checkpoint):
                found.append(Need(f"{what}{name}", head.checkpoint + 1))
    return sorted(found, key=lambda need: need.sequence)


async def _head(find: Callable[[str], Awaitable[View | None]], name: str) -> Head | None:
    view = await find(name)
    if view is None:
        return None
    try:
        return await view.head()
    finally:
        await view.aclose()
