"""State: the one projection that the server runs, into the buckets; here it is checked, and made anew.

Owns: the comparison of what buckets hold with the fold of the log. What is compared is on the disk, so that millions
of keys need no memory. Invariant: a difference that is only on its way, since the log is written meanwhile, is none.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from projections.buckets import Held, ScopeBucket
from projections.source import Source

NAME = "state"
SUMMARY = "current values in buckets, kept by the server itself"

_BATCH = 1000
_MOST = 100
"""Differences that are named; where there are more, one need not know them all."""
_SETTLES = 10.0
"""Seconds within which what is on its way to a bucket arrives."""
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose entry in the bucket is not what the log says."""

    bucket: str
    subject: str
    found: Literal["nothing", "another event", "another value", "a value", "a delete"]
    event: int
    """The log's event that should be there; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comparing a bucket with the log showed."""

    bucket: str
    checkpoint: int
    """The log's last sequence when the comparison began."""
    keys: int
    """How many keys the log gives a value."""
    differences: Sequence[Difference]

    @property
    def equal(self) -> bool:
        """Whether the bucket holds what the log says."""
        return not self.differences


async def verify(source: Source, kind: str) -> Verdict:
    """Compare the bucket of a kind of scope with the fold of the whole log. Writes may go on meanwhile."""
    bucket = ScopeBucket(source, kind)
    target = await source.last()
    with _scratch() as folded:
        async for batch in _batches(bucket.events(target)):
            await asyncio.to_thread(_fold, folded, batch)
        doubtful: list[str] = []
        async for batch in _batches(bucket.entries()):
            doubtful += (await asyncio.to_thread(_compare, folded, batch))[: _MOST - len(doubtful) + 1]
        (keys,) = folded.execute("SELECT count(*) FROM folded WHERE NOT deleted").fetchone()
        missing = "SELECT subject FROM folded WHERE NOT deleted AND NOT seen LIMIT ?"
        doubtful += [subject for (subject,) in folded.execute(missing, (_MOST,))]
    differences = []
    for subject in dict.fromkeys(doubtful):
        difference = await _settled(bucket, subject)
        if difference is not None:
            differences.append(difference)
    return Verdict(bucket.name, target, keys, differences)


async def rebuild(source: Source, kind: str) -> Verdict:
    """Have the server make the bucket of a kind of scope anew from the log, and compare it."""
    await ScopeBucket(source, kind).recreate()
    return await verify(source, kind)


async def _settled(bucket: ScopeBucket, subject: str) -> Difference | None:
    """What is wrong with a key for good; None if it only took a moment."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLES
    while True:
        logged, entry = await bucket.logged(subject), await bucket.entry(subject)
        found = _fault(logged, entry)
        if found is None:
            return None
        if loop.time() > deadline:
            return Difference(bucket.name, subject, found, 0 if logged is None else logged.sequence)
        await asyncio.sleep(_LOOK)


def _fault(
    logged: Held | None, entry: Held | None
) -> Literal["nothing", "another event", "another value", "a value", "a delete"] | None:
    """What a bucket holds that it should not, by the log; None if all is well. Old markers of deletes may be gone."""
    if logged is None or logged.deleted:
        if entry is None or (entry.deleted and logged is not None):
            return None
        return "a delete" if entry.deleted else "a value"
    if entry is None:
        return "nothing"
    if entry.deleted:
        return "a delete"
    if entry.sequence != logged.sequence:
        return "another event"
    return None if entry.digest == logged.digest else "another value"


@contextmanager
def _scratch() -> Iterator[sqlite3.Connection]:
    """A table in a file that is gone afterwards."""
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE folded (subject TEXT PRIMARY KEY, sequence INTEGER, deleted INTEGER, digest BLOB, "
            "seen INTEGER DEFAULT 0) WITHOUT ROWID"
        )
        yield connection
    finally:
        connection.close()


def _fold(connection: sqlite3.Connection, batch: Iterable[Held]) -> None:
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT OR REPLACE INTO folded (subject, sequence, deleted, digest) VALUES (?, ?, ?, ?)", batch
    )
    connection.execute("COMMIT")


def _compare(connection: sqlite3.Connection, batch: Iterable[Held]) -> list[str]:
    """The subjects whose entries are not the fold's; the others are marked as seen."""
    doubtful = []
    connection.execute("BEGIN")
    for entry in batch:
        marked = connection.execute(
            "UPDATE folded SET seen = 1 WHERE subject = ? AND sequence = ? AND deleted = ? AND digest = ?", entry
        )
        if marked.rowcount != 1:
            doubtful.append(entry.subject)
    connection.execute("COMMIT")
    return doubtful


async def _batches(items: AsyncIterator[Held]) -> AsyncIterator[list[Held]]:
    batch: list[Held] = []
    async for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
