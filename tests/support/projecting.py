"""A projection whose view shows every event that is missing, double or out of order, and what the view must be."""

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from agentfield import Event
from projections import Projection


class Chain(Projection):
    """For each key, how many events it had, and a hash over all of them in their order."""

    name = "chain"
    patterns = "item_*"

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE chains (key TEXT PRIMARY KEY, events INTEGER, hash TEXT)")

    def apply(self, event: Event, view: Any) -> None:
        row = view.execute("SELECT events, hash FROM chains WHERE key = ?", (event.key,)).fetchone() or (0, "")
        view.execute("INSERT OR REPLACE INTO chains VALUES (?, ?, ?)", (event.key, row[0] + 1, link(row[1], event)))


def link(before: str, event: Event) -> str:
    return hashlib.sha256(f"{before}|{event.revision}|{event.operation}|{event.data!r}".encode()).hexdigest()


async def folded(events: AsyncIterator[Event]) -> dict[str, tuple[int, str]]:
    """What the view of :class:`Chain` must say after these events."""
    chains: dict[str, tuple[int, str]] = {}
    async for event in events:
        count, before = chains.get(event.key, (0, ""))
        chains[event.key] = count + 1, link(before, event)
    return chains


def chains_in(path: Path) -> dict[str, tuple[int, str]]:
    """What the view says, read as its users read it."""
    return {key: (count, last) for key, count, last in rows(path, "SELECT key, events, hash FROM chains")}


def connected_to(path: Path) -> sqlite3.Connection:
    """The view's file, as its users open it."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)


def rows(path: Path, query: str, parameters: Iterable[Any] = ()) -> list[Any]:
    connection = connected_to(path)
    try:
        return connection.execute(query, tuple(parameters)).fetchall()
    finally:
        connection.close()


def checkpoint_in(path: Path) -> int:
    """How far a view has come; 0 if it is not there yet."""
    return int(rows(path, "SELECT checkpoint FROM _projection")[0][0]) if path.exists() else 0
