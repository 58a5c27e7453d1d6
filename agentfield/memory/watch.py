"""Watching: events live, in one process, with a marker between the past and what follows.

Owns: the seam between what was and what comes. The target is captured first and read up to, never guessed from what
is pending; so each change is seen exactly once, on one side of the marker or the other. Where somebody has taken events
out of the log, the watch ends with ResyncRequired, and not with a gap.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from agentfield.errors import ClosedError, ResyncRequired
from agentfield.event import Event
from agentfield.fabric.consumers.beginning import beginning
from agentfield.fabric.consumers.consuming import Start
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reader import Reader
from agentfield.fabric.reading.present import present_values
from agentfield.memory.addressing import AnyScope
from agentfield.memory.encrypting import known
from agentfield.memory.history import event_of, matching
from agentfield.memory.moment import check_point
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import is_live
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
    start: Start,
    *,
    schemas: Schemas | None = None,
) -> AsyncGenerator[Event | CaughtUp, None]:
    """Events from ``start`` on, for ever, with one :class:`CaughtUp`. Raises :class:`ResyncRequired`."""
    resolver = Resolver(fabric, schemas)
    filters = fabric.subjects.filters(patterns, scopes)
    table = PreviousTable(fabric.log, filters)
    state = await fabric.log.state()
    first, target = int(state["first_seq"]), int(state["last_seq"])
    begin = target + 1
    if not isinstance(start, str):
        check_point(start, "start")
        begin = await beginning(fabric.log, start, state)
        if isinstance(start, datetime) and begin == first > 1:  # nobody knows when what came before was stored
            raise ResyncRequired(requested=first - 1, first_available=first)
    elif start == "all":
        begin = 1
    if begin == 1:
        table.complete = True
    elif begin <= target + 1:
        await table.fill(begin - 1)  # further ahead, what a key held before is looked up when it comes to that
    if start == "current":
        async with aclosing(present_values(fabric.log, filters, target)) as values:
            async for last, previous in values:
                if not matching(fabric, patterns, last):
                    continue
                record = await known(fabric, last)
                if is_live(record, fabric.log.now()):
                    yield await resolver.event(record, previous)
    caught_up = begin > target
    if caught_up:
        yield CaughtUp(target)
    async with Reader(fabric.connection, fabric.log.stream, filters, start=begin, gapless=True) as reader:
        if not caught_up:
            async with aclosing(reader.until(target)) as past:
                async for record in past:
                    if matching(fabric, patterns, record):
                        yield await event_of(resolver, table, record)
            yield CaughtUp(target)
        async with aclosing(reader.follow()) as following:
            async for record in following:
                if matching(fabric, patterns, record):
                    yield await event_of(resolver, table, record)
        raise ClosedError("the connection of this watch was closed")
