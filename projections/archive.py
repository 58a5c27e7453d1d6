"""Archive: the log as Parquet files, a directory for each day, from which history can be read on once it is trimmed.

Owns: how much is added at a time and when, comparing an archive with the log, and trimming the log up to where an
archive was found to hold it. What a file looks like is ``agentfield.archive``'s. Invariant: nothing is taken out of the
log that was not read back from the archive just before, and compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from agentfield import HistoryTruncatedError, InvalidInputError, ProjectionError
from agentfield.archive.checking import checked
from agentfield.archive.columns import records_of
from agentfield.archive.directory import MOST_BYTES, MOST_ROWS, Segment
from agentfield.audit.source import Live, stored_of
from agentfield.codec import Record
from projections.comparing import Verdict
from projections.messages import Messages
from projections.projection import Projection, Selection
from projections.runner import Runner
from projections.source import EVERY_MESSAGE, Batch, Source
from projections.stores.archive import KIND, NAME, NEVER, ArchiveStore, ArchiveTransaction, ArchiveView
from projections.view import Head

WITHIN: Final = 5.0
"""Seconds after which what has come is written, however little it is."""
_CALM: Final = 20
"""Writing rests for so many times as long as it last took: the last file is replaced as a whole each time."""


class Archive(Projection):
    """Every message of the log, as it is stored, in Parquet files."""

    name = NAME
    store = KIND

    def apply(self, event: Any, view: ArchiveTransaction) -> None:
        """Take a message into the archive."""
        view.take(event)


class Archiver(Runner):
    """Runs :class:`Archive` into a directory."""

    def __init__(self, source: Source, projection: Archive, path: Path) -> None:
        super().__init__(source, projection, ArchiveStore(source, path))
        self.path = path

    async def rebuild(self) -> NoReturn:
        """Refused: an archive may hold what the log no longer has."""
        raise InvalidInputError(NEVER)

    async def verify(self) -> Verdict:
        """Compare the archive with the log, message by message and byte for byte; the first difference is named.

        What was trimmed off the log cannot be compared with it, but with the seals: see ``agentfield audit verify``.
        """
        live = await self._generations.existing()
        assert isinstance(live, ArchiveView)
        await live.check_log()
        return await compared(self.source, await live.segments())

    @property
    def keeps_values(self) -> bool:
        """What is personal is archived as it is stored, encrypted."""
        return False

    def _selected(self) -> Selection:
        return EVERY_MESSAGE

    async def _check_log(self, head: Head) -> None:
        await ArchiveView(self.source, self.path).check_log()

    def _feed(self, start: int) -> Stretches:
        return Stretches(self.source, start)


class Stretches:
    """A walk over every message of the log, in batches that are worth a file, or have waited long enough."""

    def __init__(self, source: Source, start: int) -> None:
        self._messages = Messages(source, start, gapless=True)
        self._pending: list[Record] = []
        self._bytes = 0
        self._since = 0.0
        self._given = 0.0
        self._rest = WITHIN
        self._ahead: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._messages.__aenter__()
        except HistoryTruncatedError as error:
            raise ProjectionError(
                f"the archive ends at revision {error.requested - 1}, and the log was trimmed up to "
                f"{error.first_available - 1}: put the files of the archive that holds what is between them into it, "
                "or begin another archive, in another directory",
                projection=NAME,
            ) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        await self._messages.__aexit__(kind, error, trace)

    async def batch(self, most: int) -> Batch:
        """What is to be written next, as soon as that is due."""
        if self._given:
            self._rest = max(WITHIN, _CALM * (time.monotonic() - self._given))
        while not self._is_full() and self._patience() != 0:
            for record in await self._messages.some(self._patience()):
                self._add(record)
        self._given = time.monotonic()
        return self._taken()

    async def until(self, target: int, most: Callable[[], int]) -> AsyncIterator[Batch]:
        """What is to be written up to sequence ``target``. While one batch is written, the next one is read."""
        records = self._messages.until(target)
        while True:
            if self._ahead is None:
                self._ahead = asyncio.create_task(self._fill(records), name="messages to be archived")
            await self._ahead
            batch = self._taken() if self._pending else None
            self._ahead = None
            if batch is None:
                return
            self._ahead = asyncio.create_task(self._fill(records), name="messages to be archived")
            yield batch

    async def _fill(self, records: AsyncIterator[Record]) -> None:
        """Take records until there is enough to be written, or no more."""
        async for record in records:
            self._add(record)
            if self._is_full():
                return

    def _add(self, record: Record) -> None:
        if not self._pending:
            self._since = time.monotonic()
        self._pending.append(record)
        self._bytes += len(record.payload)

    def _is_full(self) -> bool:
        return len(self._pending) >= MOST_ROWS or self._bytes >= MOST_BYTES // 2

    def _patience(self) -> float | None:
        """Seconds for which what is pending may still wait; None if nothing is pending."""
        return None if not self._pending else max(0.0, self._since + self._rest - time.monotonic())

    def _taken(self) -> Batch:
        taken: list[Any] = self._pending
        self._pending, self._bytes = [], 0
        return Batch(taken[-1].sequence, taken)


# -- comparing --------------------------------------------------------------------------------------------------------


async def compared(source: Source, segments: Sequence[Segment], *, start: int = 1) -> Verdict:
    """Compare an archive with the log, from a revision on. Raises as reading either does."""
    if not segments:
        return Verdict(0, 0)
    state = await source.fabric.log.state()
    last = min(segments[-1].last, int(state["last_seq"]))
    complete = source.fabric.log.held.complete
    begin = max(start, segments[0].first)
    try:
        return await _walked(source, segments, begin, last, complete)
    except _Misread as wrong:
        return Verdict(last, 0, (f"revision {wrong.revision}", "other columns"), ("what its message says",))


async def _walked(source: Source, segments: Sequence[Segment], begin: int, last: int, complete: int) -> Verdict:
    count = trimmed = 0
    async with aclosing(_archived(segments, begin)) as archived, aclosing(_logged(source, begin, last)) as logged:
        ours = await anext(archived, None)
        async for theirs in logged:
            while ours is not None and ours.sequence < theirs.sequence:
                if ours.sequence >= complete:
                    return Verdict(last, count, _shown(ours), ("nothing",))
                ours = await anext(archived, None)
                trimmed += 1
            if ours is None or ours.sequence > theirs.sequence:
                return Verdict(last, count, ("nothing",), _shown(theirs))
            if stored_of(ours) != stored_of(theirs):
                return Verdict(last, count, _shown(ours), _shown(theirs))
            ours = await anext(archived, None)
            count += 1
        while ours is not None and ours.sequence <= last:
            if ours.sequence >= complete:
                return Verdict(last, count, _shown(ours), ("nothing",))
            ours = await anext(archived, None)
            trimmed += 1
    return Verdict(last, count, trimmed=trimmed)


class _Misread(Exception):
    """The columns of a message say something else than the message does."""

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


async def _archived(segments: Sequence[Segment], start: int) -> AsyncGenerator[Record, None]:
    groups = checked(segments, start)

    def following() -> list[Record] | None:
        group = next(groups, None)
        if group is None:
            return None
        table, fault = group
        if fault is not None:
            raise _Misread(fault.revision)
        return records_of(table)

    while (records := await asyncio.to_thread(following)) is not None:
        for record in records:
            if record.sequence >= start:
                yield record


async def _logged(source: Source, start: int, stop: int) -> AsyncGenerator[Record, None]:
    if start > stop:
        return
    async with Live(source.fabric).reader(start) as reader:
        async for record in reader.until(stop):
            yield record


def _shown(record: Record) -> tuple[str, str]:
    return f"revision {record.sequence}", record.subject.encode("utf-8", "backslashreplace").decode()
