"""Views in DuckDB, for questions over many rows: one file each, which one process at a time has open for writing.

DuckDB is an extra (``pip install 'agentfield[duckdb]'``). Since it shuts out every other process while a file is open,
the file is closed whenever there is nothing to apply, and opening it is tried for a while.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from agentfield import InvalidInputError
from projections.stores.sql import HEAD, FileView, refusal, remove_file

_BUSY = 30.0
"""Seconds that opening waits for another process to close the file."""
_PAUSE = 0.02
_ROWS = 1000


def _duckdb() -> Any:
    try:
        return import_module("duckdb")
    except ImportError:
        raise InvalidInputError(
            "a view in DuckDB needs the package duckdb: pip install 'agentfield[duckdb]', or use store = \"sqlite\""
        ) from None


class DuckTransaction:
    """What ``apply`` works on: a DuckDB connection inside the runner's transaction."""

    __slots__ = ("_connection", "fetchmany")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.fetchmany = connection.fetchmany
        """The next rows of the statement run last."""

    def execute(self, query: str, parameters: object = None) -> Any:
        """Run one statement with its parameters; the result has ``fetchone`` and ``fetchall``."""
        _check(query)
        return self._connection.execute(query, parameters)

    def executemany(self, query: str, parameters: object) -> Any:
        """Run one statement with each of many lists of parameters."""
        _check(query)
        return self._connection.executemany(query, parameters)


def _check(query: object) -> None:
    statements: Iterable[object] = (query,)
    if isinstance(query, str) and ";" in query:
        statements = (each.query for each in _duckdb().extract_statements(query))
    for statement in statements:
        why = refusal(statement)
        if why is not None:
            raise _duckdb().TransactionException(why)


class DuckView(FileView):
    """A view in a DuckDB file."""

    @property
    def fault(self) -> type[Exception]:
        """The root of what DuckDB raises."""
        error: type[Exception] = _duckdb().Error
        return error

    def connect(self, *, fresh: bool) -> Any:
        """The file, as soon as no other process has it open."""
        duckdb = _duckdb()
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                return duckdb.connect(str(self.path))
            except duckdb.IOException as error:
                if not self.is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

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
