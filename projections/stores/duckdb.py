"""Views in DuckDB, for questions over many rows: one file each, which one process at a time has open for writing.

DuckDB is an extra (``pip install 'agentfield[duckdb]'``). Since it shuts out every other process while a file is open,
the file is closed whenever there is nothing to apply, and now and then where there is; opening it is tried for a while.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from agentfield import InvalidInputError
from projections.stores.sql import HEAD, HEAD_REFUSED, FileView, refusal, remove_file
from projections.view import Fold, Moved, Step

_BUSY = 30.0
"""Seconds that opening waits for another process to close the file."""
_PAUSE = 0.02
_HELD = 1.0
"""Seconds after which the file is closed for a moment however much there is to apply."""
_FREE = 0.1
"""Seconds of such a moment: whoever waits for the file tries several times in it."""
_ROWS = 1000


def _duckdb() -> Any:
    try:
        return import_module("duckdb")
    except ImportError:
        raise InvalidInputError(
            "a view in DuckDB needs the package duckdb: pip install 'agentfield[duckdb]', or use store = \"sqlite\""
        ) from None


class DuckTransaction:
    """What ``apply`` works on: a DuckDB connection inside the runner's transaction.

    As there, the rows of the statement run last are fetched from it: ``fetchone``, ``fetchall``, ``df`` and their like.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, query: str, parameters: object = None) -> Self:
        """Run one statement with its parameters."""
        _check(query)
        self._connection.execute(query, parameters)
        return self

    def executemany(self, query: str, parameters: object) -> Self:
        """Run one statement with each of many lists of parameters."""
        _check(query)
        self._connection.executemany(query, parameters)
        return self

    def __getattr__(self, name: str) -> Any:
        """What fetches rows; nothing of what a connection can do besides, such as to commit."""
        if name.startswith("fetch") or name in _RESULTS:
            return getattr(self._connection, name)
        raise AttributeError(f"a view has no {name!r}: it runs statements, and fetches their rows", name=name, obj=self)


_RESULTS = frozenset(
    {"df", "pl", "arrow", "tf", "torch", "to_arrow_table", "to_arrow_reader", "description", "rowcount"}
)


def _check(query: object) -> None:
    if not isinstance(query, str):
        return
    named = _HEAD.search(query) is not None
    if not named and ";" not in query:
        _refuse(refusal(query))
        return
    for statement in _duckdb().extract_statements(query):
        _refuse(refusal(statement.query))
        if named and statement.type != _duckdb().StatementType.SELECT and _HEAD.search(_TEXT.sub("", statement.query)):
            _refuse(HEAD_REFUSED)


def _refuse(why: str | None) -> None:
    if why is not None:
        raise _duckdb().TransactionException(why)


_HEAD = re.compile(rf"\b{HEAD}\b", re.IGNORECASE)
_TEXT = re.compile(r"'(?:[^']|'')*'|--[^\n]*")


class DuckView(FileView):
    """A view in a DuckDB file."""

    def __init__(self, path: Path, good: Callable[[], bool]) -> None:
        super().__init__(path, good)
        self._opened = 0.0
        """When the file was opened, by the clock that never goes back."""

    @property
    def fault(self) -> type[Exception]:
        """The root of what DuckDB raises."""
        error: type[Exception] = _duckdb().Error
        return error

    def connect(self, *, fresh: bool) -> Any:
        """The file, as soon as no other process has it open."""
        deadline = time.monotonic() + _BUSY
        while True:
            if not fresh and not self.path.exists():  # DuckDB would make it
                raise Moved(f"{self.path} is gone")
            try:
                return self._connected(fresh=fresh)
            except _duckdb().IOException as error:
                if not self.is_busy(error) or self.given_up or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def _connected(self, *, fresh: bool) -> Any:
        connection = _duckdb().connect(str(self.path))
        self._opened = time.monotonic()
        if not fresh and not connection.execute("FROM duckdb_tables()").fetchall():
            remove_file(self.path)  # it was removed after all, and what DuckDB made in its place is nobody's
            connection.close()
            raise Moved(f"{self.path} is gone")
        return connection

    async def advance(self, step: Step, fold: Fold) -> None:
        """Apply and move, both or neither; now and then, let others at the file afterwards."""
        await super().advance(step, fold)
        if time.monotonic() > self._opened + _HELD:
            await self.rest()
            await asyncio.sleep(_FREE)

    def begin(self, connection: Any, *, write: bool) -> None:
        """Begin; having the file open is what shuts out the others."""
        connection.execute("BEGIN TRANSACTION")

    def end(self, connection: Any, *, keep: bool) -> None:
        """Commit or roll back. Raises duckdb.Error if an error has ended the transaction, and was passed over."""
        if keep:
            try:
                connection.execute("SELECT 1")  # a commit of what was aborted rolls back, and says nothing
            except _duckdb().TransactionException as error:
                raise type(error)(
                    "an error was passed over, and DuckDB undoes the whole transaction after one: let apply raise it, "
                    "or look before the statement whether it can be done"
                ) from error
            connection.commit()
            return
        with suppress(_duckdb().TransactionException):  # there was none
            connection.rollback()

    def is_busy(self, error: Exception) -> bool:
        """Whether another process has had the file open for too long."""
        return isinstance(error, _duckdb().IOException) and "lock" in str(error).lower()

    def is_broken(self, error: Exception) -> bool:
        """Whether it is no database, or one that somebody damaged, or without the runner's table."""
        signs = ("not a valid DuckDB database file", "Corrupt database file", f"Table with name {HEAD} does not exist")
        return any(sign in str(error) for sign in signs)

    def scrub(self, connection: Any) -> None:
        """Copy what is in the file into another one, which takes its place while nobody else can open it."""
        draft = self.path.with_name(f"scratch-{secrets.token_hex(4)}{self.path.suffix}")
        try:
            (name,) = connection.execute("SELECT current_database()").fetchone()
            connection.execute(f"ATTACH '{_quoted(str(draft), chr(39))}' AS anew")
            connection.execute(f'COPY FROM DATABASE "{_quoted(name, chr(34))}" TO anew')
            connection.execute("DETACH anew")
            connection.execute("CHECKPOINT")  # so that closing the old file has nothing to do beside the new one
            draft.replace(self.path)
        finally:
            remove_file(draft)
            self._connection = None
            connection.close()

    def wrap(self, connection: Any) -> DuckTransaction:
        """The connection, without what would end the transaction."""
        return DuckTransaction(connection)

    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """The rows of every table, in the order of its columns."""
        yield from _rows(view)

    async def rest(self) -> None:
        """Close the file, so that others can look."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await self._run(connection.close)


def _quoted(text: str, quote: str) -> str:
    return text.replace(quote, quote * 2)


def _rows(view: Any) -> Iterator[Sequence[Any]]:
    tables = view.execute("SELECT table_name FROM duckdb_tables() ORDER BY table_name").fetchall()
    for (table,) in tables:
        if table == HEAD:
            continue
        name = '"' + table.replace('"', '""') + '"'
        view.execute(f"SELECT * FROM {name} ORDER BY ALL")
        while rows := view.fetchmany(_ROWS):
            for row in rows:
                yield (table, *row)
