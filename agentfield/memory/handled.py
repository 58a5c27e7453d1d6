"""The marker that says that a handler has handled an event, stored together with what it wrote because of it.

Owns: one subject for each handler and key, on which every event of the key that has been handled leaves its revision.
Must not know: transactions. Invariants: a marker is only stored if none has been stored since it was looked at, by the
server's word, so of several instances at one event one succeeds; and whether an event has been handled is never guessed
from another's marker, since an event can be left to the dead letters and be handled after later ones.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from agentfield.codec import Record
from agentfield.effects import Effects
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.header import encode_event
from agentfield.memory.preparing import Write
from agentfield.scope import GLOBAL


class _Mark(NamedTuple):
    sequence: int
    """Where the marker is stored; 0 for none."""
    revision: int
    """The event that it is about."""
    highest: int
    """The last of all the key's events that have been handled, in the order of the log."""


_NONE = _Mark(0, 0, 0)


class Marker:
    """The marker of one event for one handler. ``look`` first; then it can be written."""

    def __init__(self, fabric: Fabric, effects: Effects) -> None:
        keys, checks = f"{fabric.subjects.namespace}.memory.", f"{fabric.subjects.namespace}.checks.handled."
        if not effects.subject.startswith(keys):
            raise InvalidInputError(
                "transaction(once=True) belongs to the memory that the handler's event came from: this one is in "
                f"namespace {fabric.subjects.namespace!r}, and the event is not"
            )
        self.subject = f"{checks}{effects.agent}.{effects.handler}.{effects.subject.removeprefix(keys)}"
        self._fabric = fabric
        self._revision = effects.revision
        self._last = _NONE

    async def look(self) -> bool:
        """Whether the event has been handled. Raises :class:`UnavailableError`."""
        (record,) = await self._fabric.log.last([self.subject])
        self._last = last = _NONE if record is None else _mark(record)
        if self._revision in (last.revision, last.highest):
            return True
        if self._revision > last.highest:
            return False
        # Later events of the key have been handled: this one may be among those before them, or have been left out.
        async for each in self._fabric.log.read([self.subject], start=self._revision + 1, stop=last.sequence):
            if _mark(each).revision == self._revision:
                return True
        return False

    def write(self, writer: Writer) -> Write:
        """The write that marks the event, to be stored with what came of it and with :meth:`expectation`."""
        content = orjson.dumps({"revision": self._revision, "highest": max(self._revision, self._last.highest)})
        headers = encode_event(event_id=new_id(), operation="set", writer=writer)
        return Write(GLOBAL, "", self.subject, content, headers, None)

    def expectation(self) -> Expectation:
        """That nothing has been marked since the last look."""
        return Expectation(self.subject, self._last.sequence)


def _mark(record: Record) -> _Mark:
    try:
        content = orjson.loads(record.payload)
        return _Mark(record.sequence, int(content["revision"]), int(content["highest"]))
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
        raise DecodeError(
            "this should say which events a handler has handled, but something other than agentfield wrote it",
            subject=record.subject,
            revision=record.sequence,
        ) from None
