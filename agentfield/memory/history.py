"""Events of the past and of now: history, and watching.

Owns: turning a slice of the log, or its live end, into events with their previous data. Must not know: how the log is
read. Invariant: events come in the order of the log, each with what its key held just before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern
from agentfield.schema import Schemas


async def events_between(
    fabric: Fabric,
    patterns: Sequence[Pattern],
    scopes: Sequence[AnyScope],
    *,
    start: int,
    stop: int,
    schemas: Schemas | None = None,
) -> AsyncIterator[Event]:
    """The matching events with sequences from ``start`` to ``stop``, oldest first."""
    if start > stop:
        return
    resolver = Resolver(fabric, schemas)
    filters = fabric.subjects.filters(patterns, scopes)
    table = PreviousTable(fabric.log, filters)
    if start > 1:
        await table.fill(start - 1)
    else:
        table.complete = True
    async for record in fabric.log.read(filters, start=start, stop=stop):
        if matching(fabric, patterns, record):
            yield await event_of(resolver, table, record)


async def bounds(fabric: Fabric, since: datetime | int | None, until: datetime | int | None) -> tuple[int, int]:
    """The sequences that a slice of the past begins and ends with, both included; empty if the second is smaller."""
    last = int((await fabric.log.state())["last_seq"])
    start = 1 if since is None else await _sequence(fabric, since, "since")
    if until is None:
        stop = last
    else:
        stop = await _sequence(fabric, until, "until") - (1 if isinstance(until, datetime) else 0)
    return start, min(stop, last)


def check_point(point: object, name: str) -> None:
    """Raises InvalidInputError unless this is a point in the log: an aware datetime, or a revision."""
    if isinstance(point, datetime) and point.tzinfo is None:
        raise InvalidInputError(f"{name}={point!r} has no time zone: use an aware datetime, e.g. datetime.now(UTC)")
    if not isinstance(point, datetime) and (type(point) is not int or point < 0):
        raise InvalidInputError(f"{name}={point!r}: an aware datetime, or a revision")


async def _sequence(fabric: Fabric, point: datetime | int, name: str) -> int:
    check_point(point, name)
    return await fabric.log.sequence_at(point) if isinstance(point, datetime) else point


async def first(events: AsyncIterator[Event], limit: int | None) -> AsyncIterator[Event]:
    """The first ``limit`` events, in their order."""
    count = 0
    async for event in events:
        yield event
        count += 1
        if count == limit:
            return


async def newest_first(events: AsyncIterator[Event], limit: int | None) -> AsyncIterator[Event]:
    """The last ``limit`` events, the newest first."""
    kept: deque[Event] = deque(maxlen=limit)
    async for event in events:
        kept.append(event)
    while kept:
        yield kept.pop()


async def event_of(resolver: Resolver, table: PreviousTable, record: Record) -> Event:
    """The event of a record that follows everything the table has seen; the table moves on."""
    event = await resolver.event(record, await table.of(record))
    table.advance(record)
    return event


def matching(fabric: Fabric, patterns: Sequence[Pattern], record: Record) -> bool:
    """Whether the record's key matches: filters may let more through than the patterns mean."""
    _, key = fabric.subjects.parse(record.subject)
    return any(pattern.matches(key) for pattern in patterns)
