"""What views in SQL databases have in common: the head as a table, and the transaction that moves it.

Owns: one connection, used by one thread at a time, never the event loop's while a plain ``apply`` runs. Must not know:
a database's dialect beyond what SQLite and DuckDB share; the few differences are methods. Invariant: the head's row is
updated first in a transaction, under the condition that it is where it is expected, so that nothing is applied twice.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from agentfield import ProjectionError
from projections.projection import Selection
from projections.view import Busy, Fold, Head, Moment, Moved, Step

T = TypeVar("T")

HEAD = "_projection"
_COLUMNS = (
    "name, version, generation, log, selection, checkpoint, events, skipped, paused, error, failed_at, updated, erased"
)
_CREATE = f"""CREATE TABLE {HEAD} (
    name TEXT, version BIGINT, generation BIGINT, log TEXT, selection TEXT, checkpoint BIGINT, events BIGINT,
    skipped BIGINT, paused BIGINT, error TEXT, failed_at BIGINT, updated TEXT, erased BIGINT
)"""
_INSERT = f"INSERT INTO {HEAD} ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADVANCE = (
    f"UPDATE {HEAD} SET checkpoint = ?, events = events + ?, skipped = skipped + ?, updated = ?, error = NULL, "
    "failed_at = NULL WHERE checkpoint = ? AND paused = 0 AND erased = ? RETURNING checkpoint"
)
_FORGET = f"UPDATE {HEAD} SET erased = ? RETURNING checkpoint"

HEAD_REFUSED = f"the table {HEAD} is the runner's: keep what the view needs in tables of its own"
"""Said of what would change how far the view has come."""
_LEADING = r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_OURS = re.compile(rf"{_LEADING}(commit|end|rollback|abort|begin|start|attach|detach)\b", re.IGNORECASE | re.DOTALL)


class FileView(ABC):
    """A view in a database file. ``good`` says whether it may still be advanced."""

    def __init__(self, path: Path, good: Callable[[], bool]) -> None:
        self.path = path
        self.temporary = False
        self._good = good
        self._connection: Any = None
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix=f"view {path.name}")
        self._turn = asyncio.Lock()
        self.given_up = False
        """Whether nobody wants any more what is being waited for on the thread: another process's end, say."""

    @property
    def kind(self) -> str:
        """What it is: the file's suffix."""
        return self.path.suffix[1:]

    @property
    def place(self) -> str:
        """The file."""
        return str(self.path)

    def good(self) -> bool:
        """Whether it may be advanced."""
        return self._good()

    @property
    @abstractmethod
    def fault(self) -> type[Exception]:
        """The root of what the database raises."""

    @abstractmethod
    def connect(self, *, fresh: bool) -> Any:
        """A connection whose transactions begin and end only when told; ``fresh``: the file is to be made."""

    @abstractmethod
    def begin(self, connection: Any, *, write: bool) -> None:
        """Begin a transaction; one that writes shuts out every other that does."""

    def own(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """Run a statement that writes the head, which no statement of a projection may; returns its rows."""
        rows: list[Any] = self._open().execute(statement, values).fetchall()
        return rows

    @abstractmethod
    def end(self, connection: Any, *, keep: bool) -> None:
        """Commit the transaction, or roll it back; there may be none to be rolled back."""

    @abstractmethod
    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """Every row that a projection has put in, in a fixed order."""

    @abstractmethod
    def is_busy(self, error: Exception) -> bool:
        """Whether the database says that somebody else has the file to himself."""

    @abstractmethod
    def is_broken(self, error: Exception) -> bool:
        """Whether the database says that the file is none of its own, or not as it was written."""

    def remedy(self, error: Exception) -> str:
        """What to do about an error, to be said behind it; nothing where that is plain."""
        if self.is_broken(error):
            name = self.path.parent.name
            return f": take it away with `agentfield projections remove {name}`, and its projection makes it anew"
        return ""

    @abstractmethod
    def scrub(self, connection: Any) -> None:
        """Write the file anew, so that nothing is left in it, or beside it, of what was deleted or replaced."""

    @abstractmethod
    def wrap(self, connection: Any) -> Any:
        """What ``apply`` gets as the view: it can do anything but begin and end transactions."""

    async def found(self, head: Head, prepare: Fold) -> None:
        """Make the file: the head, and what the projection prepares."""
        async with self._turn:
            await self._run(self._found, head)
            try:
                await self._fold(prepare)
                await self._run(self._commit)
            except BaseException:
                await self._run(self._undo)
                raise

    async def head(self) -> Head:
        """Where it stands."""
        async with self._turn:
            return await self._run(self._head)

    async def advance(self, step: Step, fold: Fold) -> None:
        """Apply and move, both or neither."""
        async with self._turn:
            try:
                await self._run(self._move, step)
                await self._fold(fold)
                await self._run(self._commit)
            except BaseException:
                await self._run(self._undo)
                raise

    async def stop(self, error: str, sequence: int | None) -> None:
        """Note why it does not advance."""
        await self._write(f"UPDATE {HEAD} SET error = ?, failed_at = ?, updated = ?", error, sequence, _now())

    async def pause(self, paused: bool) -> None:
        """Let nobody advance it, or let it go on."""
        await self._write(f"UPDATE {HEAD} SET paused = ?, updated = ?", int(paused), _now())

    async def forget(self, revision: int, fold: Fold | None) -> bool:
        """Take out what was erased, then free the file of it; the head says that it is gone when it is."""
        if fold is not None:
            async with self._turn:
                try:
                    await self._run(self._begin_on_good)
                    await self._run(self.own, _FORGET, (-revision,))
                    await self._fold(fold)
                    await self._run(self._commit)
                except BaseException:
                    await self._run(self._undo)
                    raise
                await self._run(lambda: self.scrub(self._open()))
        await self._write(f"UPDATE {HEAD} SET erased = ?", revision)
        return True

    @asynccontextmanager
    async def frozen(self, *, alone: bool = False) -> AsyncIterator[Moment]:
        """The view as it is at one moment; ``alone``: nobody can advance it meanwhile."""

        def freeze() -> Moment:
            self.begin(self._open(), write=alone)
            return Moment(self._head(), self.wrap(self._connection))

        async with self._turn:
            try:
                yield await self._run(freeze)
            finally:
                await self._run(self._undo)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives that looks at a frozen view's content."""
        return await self._run(function, *arguments)

    @abstractmethod
    async def rest(self) -> None:
        """Nothing is to be done for now."""

    async def aclose(self) -> None:
        """Close the file; remove it if it was temporary."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await self._in(thread, connection.close)
        thread.shutdown()
        if self.temporary:
            remove_file(self.path)

    # -- on the view's own thread -------------------------------------------------------------------------------------

    def _open(self, *, fresh: bool = False) -> Any:
        if self._connection is None:
            if not fresh and not self.path.exists():
                raise Moved(f"{self.path} is gone")
            self._connection = self.connect(fresh=fresh)
        return self._connection

    def _found(self, head: Head) -> None:
        self.begin(self._open(fresh=True), write=True)
        self.own(_CREATE)
        values = (
            *(head.name, head.version, head.generation, head.log, json.dumps(head.selection.fields())),
            *(head.checkpoint, head.events, head.skipped, int(head.paused), head.error, head.failed_at, _now()),
            head.erased,
        )
        self.own(_INSERT, values)

    def _head(self) -> Head:
        row = self._open().execute(f"SELECT {_COLUMNS} FROM {HEAD}").fetchone()
        if row is None:
            raise self._failure(f"there is nothing in {HEAD}")
        name, version, generation, log, selection, checkpoint, events, skipped, paused, error, failed_at, updated = row[
            :-1
        ]
        return Head(
            *(name, version, generation, log, Selection.from_fields(json.loads(selection)), checkpoint, events),
            *(skipped, bool(paused), error, failed_at, datetime.fromisoformat(updated), row[-1]),
        )

    def _move(self, step: Step) -> None:
        self._begin_on_good()
        values = (step.checkpoint, step.events, step.skipped, _now(), step.expected, step.erased)
        if not self.own(_ADVANCE, values):
            raise Moved(f"{self.path} is not at {step.expected}, or is paused, or something was erased")

    def _begin_on_good(self) -> None:
        self.begin(self._open(), write=True)
        if not self._good():
            raise Moved(f"{self.path} is no longer live")

    def _commit(self) -> None:
        self.end(self._connection, keep=True)

    def _undo(self) -> None:
        if self._connection is None:
            return
        try:
            self.end(self._connection, keep=False)
        except self.fault:
            self._connection.close()  # which rolls back too
            self._connection = None

    # -- getting there ------------------------------------------------------------------------------------------------

    async def _write(self, statement: str, *values: object) -> None:
        def write() -> None:
            self.begin(self._open(), write=True)
            self.own(statement, values)
            self._commit()

        async with self._turn:
            try:
                await self._run(write)
            except BaseException:
                await self._run(self._undo)
                raise

    async def _fold(self, fold: Fold) -> None:
        """Run a fold: on the view's thread if it is plain; what it awaits, on the event loop."""
        thread = self._thread_now()
        view = self.wrap(self._connection)
        awaitable: Awaitable[None] | None = await self._in(thread, fold, view)
        if inspect.isawaitable(awaitable):
            await awaitable

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self._in(self._thread_now(), function, *arguments)
        except (self.fault, OSError) as error:
            why = f"{error}{self.remedy(error)}"
            if self.is_busy(error):
                raise Busy(f"the view {self.path}: {why}", projection=self.path.parent.name) from error
            raise self._failure(why) from error

    def _thread_now(self) -> ThreadPoolExecutor:
        if self._thread is None:
            raise self._failure("it is closed")
        return self._thread

    def _failure(self, why: str) -> ProjectionError:
        return ProjectionError(f"the view {self.path}: {why}", projection=self.path.parent.name)

    async def _in(self, thread: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        """What a call gives on the thread. If it is cancelled, the call is waited for all the same."""
        future = asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.given_up = True
            await asyncio.wait([future])
            self.given_up = False
            if not future.cancelled():
                future.exception()  # looked at, so that nobody complains about it
            raise


def refusal(statement: object) -> str | None:
    """Why a statement is none that a projection may run, and what to do instead; None if it may."""
    found = _OURS.match(statement) if isinstance(statement, str) else None
    if found is None:
        return None
    word = found[1].upper()
    if word in ("ATTACH", "DETACH"):
        return (
            f"{word} is not for projections: a view is its own file and follows from the events alone; keep what it "
            "needs in tables of its own"
        )
    return (
        f"{word} is not for projections: the runner begins and ends the transaction, so that no event counts twice; "
        "take it out, and raise an exception where an event's effects are to be undone"
    )


def remove_file(path: Path) -> None:
    """Remove a view's file and what its database keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal", ".wal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat()
