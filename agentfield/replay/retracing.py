"""Retracing: where in another namespace the events are that were replayed there.

Owns: finding the copy of an event, so that what it led to can name it. Must not know: how copies are made. Invariant: a
place that it gives holds the event that was asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentfield.codec import Record, decode_outline
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID

_REMEMBERED: Final = 100_000
"""Events whose places are remembered; others are looked for."""


class Retracing:
    """The places in ``target`` of what comes from ``source``."""

    def __init__(self, source: Fabric, target: Fabric) -> None:
        self._source = source
        self._target = target
        self._places: OrderedDict[int, int] = OrderedDict()

    def remember(self, revision: int, place: int) -> None:
        """The event of that revision is there now; 0 for nowhere."""
        self._places[revision] = place
        self._places.move_to_end(revision)
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)

    async def cause_of(self, record: Record, *, since: int) -> int | None:
        """Where the event is that led to this one; None if it is not in the target, or there was none.

        What lies before ``since`` was never replayed.
        """
        writer = decode_outline(record, self._source.subjects).writer
        if writer.cause is None or writer.cause_revision is None:
            return None
        place = self._places.get(writer.cause_revision)
        if place is None and since <= writer.cause_revision < record.sequence:
            place = await self._look_for(writer.cause, writer.cause_revision)
            self.remember(writer.cause_revision, place)
        return place or None

    async def _look_for(self, id: str, revision: int) -> int:
        record = await self._source.log.at(revision)
        if record is None or record.headers.get(EVENT_ID) != id:
            return 0
        try:
            scope, key = self._source.subjects.parse(record.subject)
        except InvalidInputError:
            return 0
        async for each in self._target.log.read([self._target.subjects.memory(scope, key)]):
            if each.headers.get(EVENT_ID) == id:
                return each.sequence
        return 0


def cause_revision(source: Fabric, record: Record) -> int | None:
    """The revision of the event that led to this one, if it says so."""
    writer = decode_outline(record, source.subjects).writer
    return None if writer.cause is None else writer.cause_revision
