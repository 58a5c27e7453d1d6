"""The archive as a view: a directory of Parquet files, of which the last row says how far it has come.

Owns: adding a stretch of the log on the condition that the archive goes up to where the stretch begins, so that of
several that would add the same, one succeeds. Whether it is paused, and what stopped it, lies beside the files. Nothing
here makes an archive anew, or takes one away: it may hold what the log no longer has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from agentfield import InvalidInputError, ProjectionError
from agentfield.archive.columns import Rows, day_of, pyarrow
from agentfield.archive.directory import Directory as Files
from agentfield.archive.directory import LogId, Segment
from agentfield.archive.directory import Moved as Elsewhere
from agentfield.archive.notes import Note, leave
from agentfield.archive.reading import Archive as Reading
from agentfield.codec import Record
from projections.source import EVERY_MESSAGE, Source
from projections.stores.kept import KeptStore
from projections.view import Fold, Head, Moment, Moved, Step

T = TypeVar("T")

NAME = "archive"
KIND = "archive"
NEVER = (
    "an archive is not made anew, nor taken away: it may hold what the log no longer has. "
    "`agentfield projections verify archive` compares it with the log; to begin another one, name another directory "
    "with --store or AGENTFIELD_ARCHIVE"
)


class ArchiveTransaction:
    """What ``apply`` works on: the stretch that is to be added."""

    def __init__(self, source: Source) -> None:
        self._subjects = source.fabric.subjects
        self.days: list[tuple[int, Rows]] = []

    def take(self, record: Record) -> None:
        """Let the next message be of the stretch."""
        day = day_of(record.timestamp)
        if not self.days or self.days[-1][0] != day:
            self.days.append((day, Rows(self._subjects)))
        self.days[-1][1].add(record)


class ArchiveView:
    """The archive in one directory."""

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self.path = path
        self.files = Files(path)
        self._turn = asyncio.Lock()

    @property
    def kind(self) -> str:
        """What it is."""
        return KIND

    @property
    def place(self) -> str:
        """The directory."""
        return str(self.path)

    def good(self) -> bool:
        """Whether it may be advanced: there is no other generation."""
        return True

    async def exists(self) -> bool:
        """Whether anything is in it."""
        return bool(await self.segments())

    async def check_log(self) -> None:
        """Raises :class:`ProjectionError` if it is of another log, or of what this one was before it was restored."""
        head = await self.head()
        if head.log != await self._source.log_id():
            raise ProjectionError(
                f"the archive {self.place} is of another log ({head.log}): name the right one, or another directory, "
                "with --store or AGENTFIELD_ARCHIVE",
                projection=NAME,
            )
        log = self._source.fabric.log
        await log.state()
        if head.checkpoint < log.held.complete:
            return
        last = await log.at(head.checkpoint)
        ours = await Reading(self.path).at(head.checkpoint)
        if last is None or ours is None or (last.timestamp, last.payload) != (ours.timestamp, ours.payload):
            raise ProjectionError(
                f"the archive {self.place} ends with revision {head.checkpoint}, which is not, or not the same, in the "
                "log: the log was restored from an older copy, or has lost its end. The archive holds what was lost: "
                "keep it, and begin another one, in another directory",
                projection=NAME,
            )

    async def segments(self) -> list[Segment]:
        """Its files in the order of the log. Raises :class:`ProjectionError`, and as reading an archive does."""
        return await self._run(self.files.segments)

    async def head(self) -> Head:
        """Where it stands."""
        segments = await self.segments()
        noted = await self._run(self.files.noted)
        written = segments[-1].path.stat().st_mtime if segments else datetime.now(UTC).timestamp()
        log = await self._source.log_id()
        if segments and segments[0].log != self._log():
            log = str(segments[0].log)
        return Head(
            name=NAME,
            version=1,
            generation=1,
            log=log,
            selection=EVERY_MESSAGE,
            checkpoint=segments[-1].last if segments else 0,
            events=sum(segment.rows for segment in segments),
            skipped=0,
            paused=await self._run(lambda: self.files.paused),
            error=noted.get("error"),
            failed_at=noted.get("failed_at"),
            updated=datetime.fromtimestamp(written, UTC),
        )

    async def advance(self, step: Step, fold: Fold) -> None:
        """Add the stretch that the fold takes, if the archive goes up to where it begins."""
        log = self._source.fabric.log
        begin = step.expected + 1 if step.expected else log.held.complete
        if not step.expected and begin > 1:
            await leave(log, Note(begin, begin))  # so that nobody takes it for one whose beginning was taken away

        def add() -> None:
            stretch = ArchiveTransaction(self._source)
            fold(stretch)
            if stretch.days:
                self.files.add(self._log(), step.expected, stretch.days, begin=begin)
                self.files.note({})

        async with self._turn:
            try:
                await self._run(add)
            except Elsewhere as elsewhere:
                raise Moved(str(elsewhere)) from None

    async def stop(self, error: str, sequence: int | None) -> None:
        """Note why it does not advance."""
        await self._run(self.files.note, {"error": error, "failed_at": sequence})

    async def pause(self, paused: bool) -> None:
        """Let nobody advance it, or let it go on."""
        await self._run(self.files.pause, paused)

    async def forget(self, revision: int, fold: Fold | None) -> bool:
        """Nothing to do: what is personal is archived as it is stored, encrypted."""
        return True

    @asynccontextmanager
    async def frozen(self, *, alone: bool = False) -> AsyncIterator[Moment]:
        """Where it stands, and the files of that moment: what is in them stays."""
        yield Moment(await self.head(), await self.segments())

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives."""
        return await asyncio.to_thread(function, *arguments)

    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """No rows: an archive is compared message by message with the log."""
        return ()

    async def rest(self) -> None:
        """Nothing to do: anybody may read it."""

    async def aclose(self) -> None:
        """Nothing to close."""

    def _log(self) -> LogId:
        fabric = self._source.fabric
        return LogId(fabric.topology.namespace, fabric.log.stream, fabric.log.created)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives in a thread. If this is cancelled, it is waited for all the same."""
        running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # looked at, so that nobody complains about it
            raise
        except OSError as error:
            raise ProjectionError(
                f"the archive {self.path}: {error.strerror or error}; what it holds stays as it is, and the log keeps "
                "the rest",
                projection=NAME,
            ) from error


class ArchiveStore(KeptStore):
    """Where an archive is kept: a directory."""

    never = NEVER

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self.path = path

    def identity(self, kind: str) -> str:
        """Tells this directory from every other, on this machine."""
        return Files(self.path).identity()

    async def names(self) -> list[str]:
        """The archive, if there is one."""
        return [NAME] if await self._view().exists() else []

    async def live(self, name: str) -> ArchiveView | None:
        """The archive, or None if there is none."""
        view = self._view()
        return view if name == NAME and await view.exists() else None

    async def create(self, kind: str, head: Head, prepare: Fold) -> ArchiveView:
        """An empty archive."""
        pyarrow()
        return self._view()

    async def remove(self, name: str) -> bool:
        """Refused, of an archive that is there."""
        if name == NAME and await self._view().exists():
            raise InvalidInputError(NEVER)
        return False

    def _view(self) -> ArchiveView:
        return ArchiveView(self._source, self.path)
