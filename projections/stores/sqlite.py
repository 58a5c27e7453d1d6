"""Views in SQLite, of the standard library: one file each, which any number of processes read while it is written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from projections.stores.sql import HEAD, HEAD_REFUSED, FileView, refusal
from projections.view import Busy

_BUSY = 30.0
"""Seconds that a writer waits for another one: as long as a rebuild may hold a view to take its place."""

_TRY = 100
"""Milliseconds after which it is looked whether the waiting has been given up."""

_LOOKS = (sqlite3.SQLITE_READ, sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_ANALYZE)
"""What may be done with the head by anybody."""


class SqliteTransaction:
    """What ``apply`` works on: a SQLite connection inside the runner's transaction."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Any = (), /) -> SqliteCursor:
        """Run one statement with its parameters; returns a cursor."""
        return SqliteCursor(self._connection).execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> SqliteCursor:
        """Run one statement with each of many sets of parameters."""
        return SqliteCursor(self._connection).executemany(sql, parameters)


class SqliteCursor(sqlite3.Cursor):
    """A cursor that runs no statement outside the runner's transaction, and gives nobody the connection."""

    @property
    def connection(self) -> sqlite3.Connection:
        """Raises AttributeError: the connection is the runner's."""
        raise AttributeError("a view has no connection: the runner begins and ends the transaction", obj=self)

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Run one statement with its parameters."""
        connection = _connection_of(self)
        _check_begun(connection)
        try:
            return super().execute(sql, parameters)
        except sqlite3.DatabaseError as error:
            _explain(connection, sql, error)
            raise

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Run one statement with each of many sets of parameters."""
        connection = _connection_of(self)
        _check_begun(connection)
        try:
            return super().executemany(sql, parameters)
        except sqlite3.DatabaseError as error:
            _explain(connection, sql, error)
            raise

    def executescript(self, sql_script: str, /) -> Self:
        """Refused: it commits the runner's transaction first."""
        raise sqlite3.ProgrammingError(
            "executescript is not for projections: it ends the runner's transaction; execute one statement at a time"
        )


_connection_of = sqlite3.Cursor.connection.__get__
"""The connection of a cursor, for us."""


def _explain(connection: sqlite3.Connection, sql: object, error: sqlite3.DatabaseError) -> None:
    """Raise what a statement that is the runner's own comes to; SQLite itself says no more than ``not authorized``.

    One may also end the transaction by what it does about a conflict, which nobody sees in it beforehand.
    """
    why = refusal(sql)
    if why is None and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
        why = HEAD_REFUSED
    if why is not None:
        raise sqlite3.ProgrammingError(why) from error
    if isinstance(error, sqlite3.IntegrityError) and not connection.in_transaction:
        raise sqlite3.IntegrityError(f"{error}; {_ENDED}") from error


_ENDED = (
    "that conflict has rolled back the runner's transaction, with every event in it: in the place of OR ROLLBACK, "
    "ON CONFLICT ROLLBACK, or RAISE(ROLLBACK, ...) of a trigger, say ABORT"
)


def _check_begun(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.Error if the runner's transaction was ended by a conflict, and ``apply`` went on regardless.

    Without it, every statement would be stored by itself, apart from the checkpoint.
    """
    if not connection.in_transaction:
        raise sqlite3.ProgrammingError(f"an error was passed over: {_ENDED}")


class SqliteView(FileView):
    """A view in a SQLite file."""

    def __init__(self, path: Path, good: Callable[[], bool]) -> None:
        super().__init__(path, good)
        self._ours = False

    @property
    def fault(self) -> type[Exception]:
        """The root of what SQLite raises."""
        return sqlite3.Error

    def connect(self, *, fresh: bool) -> sqlite3.Connection:
        """A connection in write-ahead mode: a crash of the process loses nothing, one of the machine the newest."""
        mode = "rwc" if fresh else "rw"
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY,
            isolation_level=None,
            check_same_thread=False,  # one at a time, and the thread or the event loop
            cached_statements=256,
        )
        # Head and content are synchronised together, so what a power cut takes is projected again.
        connection.execute("PRAGMA synchronous = NORMAL")
        if fresh:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.set_authorizer(self._authorize)
        return connection

    def _authorize(self, action: int, argument: str | None, second: str | None, *_: str | None) -> int:
        """Lets only us end a transaction and write the head, and nobody open another file, as SQLite does to vacuum.

        Asked when a statement is compiled, so it costs nothing for each event.
        """
        ends = action == sqlite3.SQLITE_TRANSACTION and argument != "BEGIN"
        elsewhere = action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
        head = HEAD in (argument, second) and action not in _LOOKS
        return sqlite3.SQLITE_DENY if (ends or elsewhere or head) and not self._ours else sqlite3.SQLITE_OK

    def begin(self, connection: sqlite3.Connection, *, write: bool) -> None:
        """Begin; one that writes gets the file's one write lock, when no other process has it any more."""
        if not write:
            connection.execute("BEGIN")
            return
        deadline = time.monotonic() + _BUSY
        connection.execute(f"PRAGMA busy_timeout = {_TRY}")
        try:
            while not self._locked(connection, give_up=time.monotonic() > deadline):
                pass
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(_BUSY * 1000)}")

    def _locked(self, connection: sqlite3.Connection, *, give_up: bool) -> bool:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if give_up or self.given_up or not self.is_busy(error):
                raise
            return False
        return True

    def own(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """Run a statement that writes the head."""
        self._ours = True
        try:
            return super().own(statement, values)
        finally:
            self._ours = False

    def end(self, connection: sqlite3.Connection, *, keep: bool) -> None:
        """Commit; or roll back, if a transaction is open. Raises sqlite3.Error if there is none to commit."""
        if keep:
            _check_begun(connection)
        self._ours = True
        try:
            # Methods, since the statements they compile are not kept where others could use them again.
            (connection.commit if keep else connection.rollback)()
        finally:
            self._ours = False

    def is_busy(self, error: Exception) -> bool:
        """Whether another process has had the write lock for too long."""
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY

    def is_broken(self, error: Exception) -> bool:
        """Whether it is no database, or one that somebody damaged, or without the runner's table."""
        codes = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
        return getattr(error, "sqlite_errorcode", None) in codes or str(error) == f"no such table: {HEAD}"

    def remedy(self, error: Exception) -> str:
        """What to do about an error."""
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_BUSY:
            return f": somebody else writes to it, and has not ended for {_BUSY:.0f} s; a view is for reading alone"
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            return ": its file and directory must be writable, also for looking at it here"
        return super().remedy(error)

    def scrub(self, connection: sqlite3.Connection) -> None:
        """Write the file anew from what is in it, and cut off the log of old pages, as soon as nobody reads these."""
        self._ours = True
        try:
            connection.execute("VACUUM")
        finally:
            self._ours = False
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise Busy(
                f"the view {self.path}: somebody reads it as it was before something was erased from it, and has not "
                "ended",
                projection=self.path.parent.name,
            )

    def wrap(self, connection: sqlite3.Connection) -> SqliteTransaction:
        """The connection, without what would end the transaction."""
        return SqliteTransaction(connection)

    async def rest(self) -> None:
        """Nothing to do: any number of processes may have the file open."""

    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """The rows of every ordinary table, in the order of its columns, without what indices derive."""
        yield from _rows(view)


def _rows(view: SqliteTransaction) -> Iterator[Sequence[Any]]:
    tables = view.execute("PRAGMA table_list").fetchall()
    for _, table, kind, columns, *_ in sorted(tables):
        if kind != "table" or table == HEAD or table.startswith("sqlite_"):
            continue
        name = '"' + table.replace('"', '""') + '"'
        order = ", ".join(str(number + 1) for number in range(columns))
        for row in view.execute(f"SELECT * FROM {name} ORDER BY {order}"):
            yield (table, *row)
