"""Events of the past: slices of the log, forward and backward.

Owns: turning a slice of the log, or its live end, into events with their previous data. Must not know: how the log is
read. Invariants: events come in the order of the log, or in exactly the opposite one, each with what its key held just
before it; however long the slice is, only a part of it is in memory; what the log has lost is an error, not a gap.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import NamedTuple

from agentfield.codec import Record, decode_outline
from agentfield.errors import DecodeError, HistoryTruncatedError, InvalidInputError
from agentfield.event import Event, Writer
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reading.backwards import backwards, in_blocks
from agentfield.fabric.reading.few import read_each, subjects_of
from agentfield.header import EVENT_HEADER
from agentfield.memory.addressing import AnyScope, address
from agentfield.memory.moment import check_point
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern
from agentfield.schema import Schemas

logger = logging.getLogger("agentfield.history")

_BLOCK = 500
"""Events whose previous ones are looked up together."""
_KEYS = 100_000
"""Keys that are remembered on the way, within the bytes that a table holds: what is not costs the server a search."""


class Slice(NamedTuple):
    """A part of the log: its first and last sequence, both included. Empty if the second is smaller."""

    start: int
    stop: int


async def events_between(
    fabric: Fabric,
    patterns: Sequence[Pattern],
    scopes: Sequence[AnyScope],
    part: Slice,
    *,
    reverse: bool = False,
    limit: int | None = None,
    writer: str | None = None,
    schemas: Schemas | None = None,
) -> AsyncIterator[Event]:
    """The matching events of a slice, oldest first, or newest first with ``reverse``; at most ``limit``.

    ``writer``: only those by an agent of that name, or by the execution with that id. Raises HistoryTruncatedError if
    the log loses the slice's beginning meanwhile.
    """
    resolver = Resolver(fabric, schemas)
    by = None if writer is None else partial(_is_by, writer)
    pairs = records_between(fabric, patterns, scopes, part, reverse=reverse, few=limit or _BLOCK, by=by)
    count = 0
    async with aclosing(pairs):
        async for record, previous in pairs:
            yield await resolver.event(record, previous)
            count += 1
            if count == limit:
                await check_start(fabric, part.start)
                return


async def records_between(
    fabric: Fabric,
    patterns: Sequence[Pattern],
    scopes: Sequence[AnyScope],
    part: Slice,
    *,
    reverse: bool = False,
    few: int = _BLOCK,
    by: Callable[[Writer], bool] | None = None,
) -> AsyncGenerator[tuple[Record, Record | None], None]:
    """The records of these events, each with that of its key before it; ``by`` says whose are meant.

    ``few``: how many will be asked for, at least. Raises as :func:`events_between` does.
    """
    if part.start > part.stop:
        return
    pairs = (_backward if reverse else _forward)(fabric, patterns, scopes, part, few)
    async with aclosing(pairs):  # type: ignore[type-var]
        async for record, previous in pairs:
            if matching(fabric, patterns, record) and (by is None or _wrote(fabric, record, by)):
                yield record, previous
    await check_start(fabric, part.start)


async def _forward(
    fabric: Fabric, patterns: Sequence[Pattern], scopes: Sequence[AnyScope], part: Slice, few: int
) -> AsyncIterator[tuple[Record, Record | None]]:
    filters = await _filters(fabric, patterns, scopes, part.stop)
    table = PreviousTable(fabric.log, filters, max_keys=_KEYS)
    table.complete = part.start <= 1  # for as long as it can hold all the keys
    records = read_each(fabric.log, filters, start=part.start, stop=part.stop)
    async for block in in_blocks(records, min(few, _BLOCK)):
        for place, record in enumerate(block):
            if not table.has(record):
                await table.learn([each.subject for each in block[place:]], record.sequence - 1)
            yield record, await _next(table, record)


async def _backward(
    fabric: Fabric, patterns: Sequence[Pattern], scopes: Sequence[AnyScope], part: Slice, few: int
) -> AsyncIterator[tuple[Record, Record | None]]:
    filters = await _filters(fabric, patterns, scopes, part.stop)
    if not filters:
        return
    async for block in backwards(fabric.log, filters, start=part.start, stop=part.stop, few=few):
        table = PreviousTable(fabric.log, filters)
        await table.learn([record.subject for record in block], block[0].sequence - 1)
        pairs = [(record, await _next(table, record)) for record in block]
        while pairs:
            yield pairs.pop()


async def _filters(fabric: Fabric, patterns: Sequence[Pattern], scopes: Sequence[AnyScope], stop: int) -> Sequence[str]:
    """What hears the events; for one key, wherever it is, the subjects of the scopes that have it, if they are few."""
    filters = fabric.subjects.filters(patterns, scopes)
    if not all(pattern.is_literal for pattern in patterns):
        return filters
    return await subjects_of(fabric.log, filters, stop=stop)


async def _next(table: PreviousTable, record: Record) -> Record | None:
    """What the record's key held before it; the table moves on."""
    previous = await table.of(record)
    table.advance(record)
    return previous


def check_writer(writer: object) -> None:
    """Raises InvalidInputError for what can be nobody's name or id."""
    if writer is not None and (not isinstance(writer, str) or not writer):
        raise InvalidInputError(f"writer={writer!r}: the name of an agent, or the id of an execution, or leave it out")


def _is_by(name: str, writer: Writer) -> bool:
    return name in (writer.agent, writer.execution_id)


def _wrote(fabric: Fabric, record: Record, by: Callable[[Writer], bool]) -> bool:
    try:
        return by(decode_outline(record, fabric.subjects).writer)
    except DecodeError:  # nobody of ours wrote it
        return False


async def extent(fabric: Fabric, since: datetime | int | None, until: datetime | int | None) -> Slice:
    """The slice between two points: revisions are part of it, a time only if it is where it begins.

    Without a beginning, it begins with the first event that is left. Raises HistoryTruncatedError if the log no longer
    holds the beginning that was asked for.
    """
    last = int((await fabric.log.state())["last_seq"])
    start, stop = await _bounds(fabric, last, since, until)
    first = fabric.log.held.complete
    if start < first or (isinstance(since, datetime) and start == first):  # else what was trimmed is of no interest
        first = await fabric.log.begins()
    if since is None:
        start = max(start, first)
    elif isinstance(since, datetime) and start == first > 1:
        # The event before it is gone, and nobody knows on which side of that time it was.
        raise HistoryTruncatedError(requested=first - 1, first_available=first)
    elif start < first and first > 1:
        raise HistoryTruncatedError(requested=max(1, start), first_available=first)
    return Slice(start, stop)


async def check_start(fabric: Fabric, start: int) -> None:
    """Raises HistoryTruncatedError if nobody has a slice's beginning any more: what was read of it may have gaps."""
    first = int((await fabric.log.state())["first_seq"])
    if start < first and first > 1 and start < (first := await fabric.log.begins()):
        raise HistoryTruncatedError(requested=max(1, start), first_available=first)


async def bounds(fabric: Fabric, since: datetime | int | None, until: datetime | int | None) -> tuple[int, int]:
    """The sequences that a slice of the past begins and ends with, both included; empty if the second is smaller."""
    return await _bounds(fabric, int((await fabric.log.state())["last_seq"]), since, until)


async def _bounds(
    fabric: Fabric, last: int, since: datetime | int | None, until: datetime | int | None
) -> tuple[int, int]:
    start = 1 if since is None else max(1, await _sequence(fabric, since, "since"))
    if until is None:
        stop = last
    else:
        stop = await _sequence(fabric, until, "until") - (1 if isinstance(until, datetime) else 0)
    return start, min(stop, last)


async def _sequence(fabric: Fabric, point: datetime | int, name: str) -> int:
    check_point(point, name)
    return await fabric.log.sequence_at(point) if isinstance(point, datetime) else point


async def event_of(resolver: Resolver, table: PreviousTable, record: Record) -> Event:
    """The event of a record that follows everything the table has seen; the table moves on."""
    event = await resolver.event(record, await table.of(record))
    table.advance(record)
    return event


def matching(fabric: Fabric, patterns: Sequence[Pattern], record: Record) -> bool:
    """Whether the record's key matches: filters may let more through than the patterns mean.

    A message that something other than agentfield wrote is no event of any key: it is passed over with a warning.
    """
    found = address(fabric.subjects, record)
    if found is None or EVENT_HEADER not in record.headers:
        logger.warning(
            "a foreign message is passed over: agentfield did not write revision %d, %r",
            record.sequence,
            record.subject,
        )
        return False
    _, key = found
    return any(pattern.matches(key) for pattern in patterns)
