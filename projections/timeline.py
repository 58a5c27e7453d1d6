"""The timeline: who did what, when and in which execution, searchable by the words in keys and values.

Owns: its tables, and the one way to ask them. The index of words holds no text of its own: it points into the table.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from agentfield import Event, InvalidInputError
from projections.projection import Projection
from projections.stores.sqlite import SqliteTransaction

LONGEST = 64 * 1024
"""Characters of a value's JSON that are kept and searched."""

_TABLES = (
    """CREATE TABLE events (
        revision INTEGER PRIMARY KEY, at TEXT NOT NULL, scope TEXT NOT NULL, scope_id TEXT NOT NULL,
        key TEXT NOT NULL, operation TEXT NOT NULL, reason TEXT, agent TEXT, execution_id TEXT, workflow_id TEXT,
        session_id TEXT, cause TEXT, id TEXT NOT NULL, size INTEGER NOT NULL, value TEXT
    )""",
    "CREATE INDEX by_agent ON events (agent) WHERE agent IS NOT NULL",
    "CREATE INDEX by_execution ON events (execution_id) WHERE execution_id IS NOT NULL",
    "CREATE INDEX by_scope ON events (scope, scope_id)",
    "CREATE INDEX by_time ON events (at)",
    "CREATE VIRTUAL TABLE words USING fts5 (key, value, content = 'events', content_rowid = 'revision')",
)
_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_WORDS = "INSERT INTO words (rowid, key, value) VALUES (?, ?, ?)"
_SHOWN = (
    "events.revision, at, scope, scope_id, events.key, operation, reason, agent, execution_id, workflow_id, "
    "session_id, cause, id, size, events.value"
)
as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""A value as compact JSON."""


class Timeline(Projection):
    """Every event, in a table, with a full-text index over keys and values."""

    name = "timeline"

    def prepare(self, view: SqliteTransaction) -> None:
        """Make the tables."""
        for statement in _TABLES:
            view.execute(statement)

    def apply(self, event: Event, view: SqliteTransaction) -> None:
        """Add the event."""
        text = None if event.operation == "delete" or event.erased else as_json(event.data)
        value = text if text is None else text[:LONGEST]
        writer = event.writer
        view.execute(
            _EVENT,
            (
                *(event.revision, instant(event.timestamp), event.scope, event.scope_id, event.key, event.operation),
                *(event.reason, writer.agent, writer.execution_id, writer.workflow_id, writer.session_id),
                *(writer.cause, event.id, len(text or ""), value),
            ),
        )
        view.execute(_WORDS, (event.revision, event.key, value))


@dataclass(frozen=True, slots=True)
class Question:
    """What to look for in a timeline; everything that is given must hold."""

    words: Sequence[str] = ()
    """Words of the key or the value; one that ends with ``*`` is the beginning of a word."""
    agent: str | None = None
    execution: str | None = None
    scope: tuple[str, str | None] | None = None
    """A scope's kind, and its id or None for any."""
    key: str | None = None
    """A key, or a pattern."""
    since: datetime | int | None = None
    """From this time or revision on."""
    until: datetime | int | None = None
    """Up to before this time, or up to this revision."""
    limit: int = 50
    oldest_first: bool = False
    """Which of those beyond the limit are left out: the newest, or else the oldest."""


class Moment(NamedTuple):
    """A line of the timeline."""

    revision: int
    at: str
    scope: str
    scope_id: str
    key: str
    operation: str
    reason: str | None
    agent: str | None
    execution_id: str | None
    workflow_id: str | None
    session_id: str | None
    cause: str | None
    id: str
    size: int
    value: str | None
    """The value's JSON, its first ``LONGEST`` characters; None for a delete, and for one that had been erased."""


def ask(view: SqliteTransaction, question: Question) -> list[Moment]:
    """The lines that answer a question, oldest first. Raises InvalidInputError for a text that no event can hold."""
    for text in (*question.words, question.agent, question.execution, question.key):
        if text is not None and not _is_text(text):
            raise InvalidInputError(f"{text!r} holds what no text does: a zero byte, or half a character; leave it out")
    for word in question.words:
        if not any(unicodedata.category(c)[0] in "LN" for c in word):
            raise InvalidInputError(
                f"{word!r} holds no letter and no digit, and the index knows nothing else: search for a word beside it"
            )
    source, conditions, values = "events", list[str](), list[Any]()
    if question.words:
        source = "words JOIN events ON events.revision = words.rowid"
    for condition, value in _conditions(question):
        conditions.append(condition)
        values.append(value)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "ASC" if question.oldest_first else "DESC"
    statement = f"SELECT {_SHOWN} FROM {source}{where} ORDER BY events.revision {order} LIMIT ?"
    found = [Moment(*row) for row in view.execute(statement, (*values, question.limit))]
    return found if question.oldest_first else found[::-1]


def _conditions(question: Question) -> Iterator[tuple[str, Any]]:
    if question.words:
        yield "words MATCH ?", " AND ".join(map(_quoted, question.words))
    if question.agent is not None:
        yield "agent = ?", question.agent
    if question.execution is not None:
        yield "execution_id = ?", question.execution
    if question.scope is not None:
        kind, id = question.scope
        yield "scope = ?", kind
        if id is not None:
            yield "scope_id = ?", id
    if question.key is not None:
        yield "events.key GLOB ?", glob_of(question.key)
    for point, before in ((question.since, False), (question.until, True)):
        if isinstance(point, datetime):
            yield f"at {'<' if before else '>='} ?", instant(point)
        elif point is not None:
            yield f"events.revision {'<=' if before else '>='} ?", point


def _is_text(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _quoted(word: str) -> str:
    """A word as the index takes it literally, whatever characters are in it."""
    begins = word.endswith("*")
    text = word.rstrip("*").replace('"', '""')
    return f'"{text}"*' if begins else f'"{text}"'


def glob_of(pattern: str) -> str:
    """A pattern of ours, in which a star is one or more characters, as SQLite's."""
    literal = "".join(f"[{c}]" if c in "?[" else c for c in pattern)
    return literal.replace("*", "?*")


def instant(time: datetime) -> str:
    """A time so that order as text is order in time."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
