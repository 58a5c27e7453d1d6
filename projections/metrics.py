"""Metrics: how much is written, where, by whom, and which keys are hot."""

from __future__ import annotations

from typing import Any, NamedTuple

from agentfield import Event
from projections.projection import Projection
from projections.stores.sqlite import SqliteTransaction
from projections.timeline import as_json, instant

_TABLES = (
    """CREATE TABLE minutes (
        minute TEXT, scope TEXT, sets INTEGER, deletes INTEGER, bytes INTEGER, PRIMARY KEY (minute, scope)
    ) WITHOUT ROWID""",
    """CREATE TABLE keys (
        scope TEXT, scope_id TEXT, key TEXT, writes INTEGER, bytes INTEGER, size INTEGER, at TEXT,
        PRIMARY KEY (key, scope, scope_id)
    ) WITHOUT ROWID""",
    "CREATE TABLE writers (agent TEXT PRIMARY KEY, writes INTEGER, bytes INTEGER, at TEXT) WITHOUT ROWID",
)
_MINUTE = """INSERT INTO minutes VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    sets = sets + excluded.sets, deletes = deletes + excluded.deletes, bytes = bytes + excluded.bytes"""
_KEY = """INSERT INTO keys VALUES (?, ?, ?, 1, ?, ?, ?) ON CONFLICT DO UPDATE SET
    writes = writes + 1, bytes = bytes + excluded.bytes, size = excluded.size, at = excluded.at"""
_WRITER = """INSERT INTO writers VALUES (?, 1, ?, ?) ON CONFLICT DO UPDATE SET
    writes = writes + 1, bytes = bytes + excluded.bytes, at = excluded.at"""


class Metrics(Projection):
    """Counts and sizes by minute and scope, by key, and by writer. A size is that of the value's JSON, in bytes."""

    name = "metrics"

    def prepare(self, view: SqliteTransaction) -> None:
        """Make the tables."""
        for statement in _TABLES:
            view.execute(statement)

    def apply(self, event: Event, view: SqliteTransaction) -> None:
        """Count the event."""
        deleted = event.operation == "delete"
        unknown = deleted or event.erased
        size = 0 if unknown else len(as_json(event.data).encode())
        at = instant(event.timestamp)
        view.execute(_MINUTE, (f"{at[:16]}Z", event.scope, int(not deleted), int(deleted), size))
        view.execute(_KEY, (event.scope, event.scope_id, event.key, size, None if unknown else size, at))
        view.execute(_WRITER, (event.writer.agent or "", size, at))


class HotKey(NamedTuple):
    """A key, how often it was written, and what that amounts to in bytes; ``size`` is None if it is gone."""

    key: str
    scope: str
    scope_id: str
    writes: int
    bytes: int
    size: int | None
    at: str


class ActiveWriter(NamedTuple):
    """An agent, empty for programs that are none, and what it wrote."""

    agent: str
    writes: int
    bytes: int
    at: str


class Rate(NamedTuple):
    """What was written to the scopes of one kind."""

    scope: str
    sets: int
    deletes: int
    bytes: int


class Summary(NamedTuple):
    """What the metrics say, the largest first."""

    rates: list[Rate]
    keys: list[HotKey]
    writers: list[ActiveWriter]


def summarise(view: SqliteTransaction, *, since: str, top: int) -> Summary:
    """The totals since a minute (as ``instant`` gives it), and the hottest keys and writers of all time."""

    def found(query: str, *values: Any) -> list[Any]:
        return list(view.execute(query, values).fetchall())

    rates = found(
        "SELECT scope, sum(sets), sum(deletes), sum(bytes) FROM minutes WHERE minute >= ? GROUP BY scope "
        "ORDER BY 2 DESC, 1",
        since,
    )
    keys = found(
        "SELECT key, scope, scope_id, writes, bytes, size, at FROM keys ORDER BY writes DESC, key, scope, scope_id "
        "LIMIT ?",
        top,
    )
    writers = found("SELECT agent, writes, bytes, at FROM writers ORDER BY writes DESC, agent LIMIT ?", top)
    return Summary(
        [Rate(*row) for row in rates], [HotKey(*row) for row in keys], [ActiveWriter(*row) for row in writers]
    )
