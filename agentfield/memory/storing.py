"""What every kind of write stands on: storing it, and recognising it when a handler makes it again.

Owns: the ids of a handler's writes, and what is done with a write that an earlier run has made. Must not know: which
operation writes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from agentfield.codec import Record
from agentfield.errors import ConflictError, NotFoundError
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID
from agentfield.memory.base import Base
from agentfield.memory.encrypting import known
from agentfield.memory.preparing import Write
from agentfield.memory.writing import store
from agentfield.scope import Scope


class Storing(Base):
    """What the writing operations share."""

    def _write_id(
        self,
        scope: Scope,
        key: str,
        operation: str,
        payload: bytes = b"",
        ttl: float | None = None,
        *,
        conditional: bool,
    ) -> str | None:
        """The id that a write has in a handler; None outside one, where every write is a new one."""
        effects = self._effects()
        if effects is None:
            return None
        return effects.of_write(place_of(scope, key), operation, payload, repr(ttl), conditional=conditional)

    async def _made_before(self, fabric: Fabric, write: Write, last: Record) -> int | None:
        """The revision of a write that would be refused, if an earlier run of this handler for this event made it.

        Then what stands in its way came after it. ``last`` is the key's last event.
        """
        effects = self._effects()
        if effects is None:
            return None
        id = write.headers[EVENT_ID]
        if is_event(last, id):
            return last.sequence
        async for record in fabric.log.read([write.subject], start=effects.revision + 1, stop=last.sequence):
            if is_event(record, id):
                return record.sequence
        return None

    def _restorable(self, fabric: Fabric, write: Write) -> None:
        """In a handler that runs again after an error: have the write made anew, if the failed run overwrote it."""
        effects = self._effects()
        if effects is None:
            return

        async def restore(stale: str, id: str) -> None:
            (record,) = await fabric.log.last([write.subject])
            if record is None or not is_event(record, stale):
                return  # others have written since
            again = write._replace(headers={**write.headers, EVENT_ID: id})
            with suppress(ConflictError):  # others have written just now
                await self._store(fabric, again, record.sequence)

        effects.restorable(write.headers[EVENT_ID], restore)

    def _refused(self, id: str | None) -> None:
        effects = self._effects()
        if effects is not None and id is not None:
            effects.refused(id)

    async def _stored(self, fabric: Fabric, key: str, revision: int) -> Any:
        """The value that an update stored when its event came before."""
        record = await fabric.log.at(revision)
        if record is None:
            raise NotFoundError(f"what an update of {key!r} stored as revision {revision} is not in the log any more")
        return await self._resolver(fabric).value(record)

    async def _store(self, fabric: Fabric, write: Write, expected: int | None, *, repeated: bool = False) -> int:
        revision = await store(fabric, self._lifetimes, write, expected, repeated=repeated)
        self.seen.saw(revision)
        return revision


async def last_record(fabric: Fabric, scope: Scope, key: str) -> Record | None:
    """The last event of a key in a scope, as its readers know it."""
    (record,) = await fabric.log.last([fabric.subjects.memory(scope, key)])
    return await known(fabric, record)


def is_event(record: Record | None, event_id: str | None) -> bool:
    """Whether a record is the event of that id."""
    return record is not None and event_id is not None and record.headers.get(EVENT_ID) == event_id


def place_of(scope: Scope, key: str) -> str:
    """Where a write goes, as its id is derived from it."""
    return f"{scope}\n{key}"
