"""Watching: events live, in one process, with a marker between the past and what follows.

Owns: the seam between what was and what comes. The target is captured first and read up to, never guessed from what
is pending; so each change is seen exactly once, on one side of the marker or the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reader import Reader
from agentfield.memory.addressing import AnyScope
from agentfield.memory.history import bounds, event_of, matching
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import live_entries
from agentfield.pattern import Pattern
from agentfield.schema import Schemas


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything that had happened when the watch began has been seen; from here on, events are new."""

    revision: int
    """The last sequence of the log at the beginning of the watch."""


async def watching(
    fabric: Fabric,
    patterns: Sequence[Pattern],
    scopes: Sequence[AnyScope],
    start: Literal["new", "all", "current"] | datetime | int,
    *,
    schemas: Schemas | None = None,
) -> AsyncIterator[Event | CaughtUp]:
    """Events from ``start`` on, for ever, with one :class:`CaughtUp`."""
    resolver = Resolver(fabric, schemas)
    filters = fabric.subjects.filters(patterns, scopes)
    table = PreviousTable(fabric.log, filters)
    _, target = await bounds(fabric, None, None)
    begin = target + 1
    if not isinstance(start, str):
        begin, _ = await bounds(fabric, start, None)
    elif start == "all":
        begin = 1
    if begin == 1:
        table.complete = True
    elif begin <= target + 1:
        await table.fill(begin - 1)  # further ahead, what a key held before is looked up when it comes to that
    if start == "current":
        present = [record async for record in live_entries(fabric, patterns, scopes) if record.sequence <= target]
        for record in present:
            yield await event_of(resolver, PreviousTable(fabric.log, filters), record)
    caught_up = begin > target
    if caught_up:
        yield CaughtUp(target)
    async with Reader(fabric.connection, fabric.log.stream, filters, start=begin) as reader:
        if not caught_up:
            async for record in reader.until(target):
                if matching(fabric, patterns, record):
                    yield await event_of(resolver, table, record)
            yield CaughtUp(target)
        async for record in reader.follow():
            if matching(fabric, patterns, record):
                yield await event_of(resolver, table, record)
