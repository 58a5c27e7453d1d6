"""Orphans: objects whose event never came, because its writer died, gave up or was refused; and their end.

Owns: the proof that no event refers to an object, nor ever will. An object is condemned by an event of its own in the
log, and the event that would refer to it may only be appended while that one is not there: so whatever is in the log up
to the condemnation is all there will be. One self-renewing timer carries how far the last sweep came. Invariants: an
object that an event refers to stays for ever, since history needs it; an orphan goes within two intervals.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import NamedTuple

import orjson

from agentfield.amount import number_of
from agentfield.codec import Record
from agentfield.errors import UnavailableError
from agentfield.event import Writer
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.objects import ObjectInfo
from agentfield.header import EVENT_HEADER, encode_event

logger = logging.getLogger("agentfield.sweep")

OBJECTS = "objects"
"""The name of the sweep, beside those of the buckets."""
SLICE = 200
"""Objects looked at in one go: whoever sweeps has keys to expire as well."""


class Orphan(NamedTuple):
    """An object that no event refers to, as far as is known."""

    name: str
    subject: str
    """Of its event in the log."""
    after: int
    """The log's last sequence before the object existed: its event, if there is one, comes later."""

    def about(self) -> dict[str, str]:
        """What is kept with the object, so that anybody can find its event."""
        return {"agentfield-subject": self.subject, "agentfield-after": str(self.after)}

    @classmethod
    def of(cls, info: ObjectInfo) -> Orphan | None:
        """The candidate an object is; None if it is not agentfield's."""
        subject, after = info.about.get("agentfield-subject"), info.about.get("agentfield-after", "")
        return cls(info.name, subject, int(after)) if subject and after.isdigit() else None


def condemnation(fabric: Fabric, name: str) -> str:
    """The subject in the log that says, by holding anything at all, that an object was given up."""
    return f"{fabric.subjects.namespace}.checks.objects.{name}"


async def collect(fabric: Fabric, orphan: Orphan) -> bool:
    """Take an object away, if no event refers to it, and see to it that none ever will; return whether it went.

    Safe at any time and from any number of processes. Raises :class:`UnavailableError`: the object is still there, or
    gone; collecting again goes on.
    """
    (last,) = await fabric.log.last([orphan.subject])
    if _refers(last, orphan):
        return False
    async for record in fabric.log.read([orphan.subject], start=orphan.after + 1):
        if _refers(record, orphan):
            return False
    condemned = condemnation(fabric, orphan.name)
    headers = encode_event(event_id=f"{orphan.name}-condemned", operation="set", writer=Writer())
    payload = orjson.dumps({"object": orphan.name, "condemned": True})
    stop = (await fabric.log.append(condemned, payload, headers)).sequence
    proven = False  # whoever answers has to show that it has got as far as the condemnation
    async for record in fabric.log.read([orphan.subject, condemned], start=orphan.after + 1, stop=stop):
        if _refers(record, orphan):
            return False
        proven = proven or record.sequence == stop
    if not proven:
        raise UnavailableError(f"looking for the event of object {orphan.name}: the log was not read to its end")
    await fabric.objects.remove(orphan.name)
    return True


async def sweep_objects(fabric: Fabric, checkpoint: int, age: timedelta) -> tuple[int, int, bool]:
    """Collect orphans older than ``age`` among a slice of the objects after a checkpoint.

    Returns how many went, the new checkpoint (a sequence of the store's stream), and whether there is nothing more to
    look at by now. What has been looked at need not be again: it is gone, or stays for ever.
    """
    horizon = fabric.log.now_at_least() - int(age.total_seconds() * 1_000_000_000)
    infos: list[ObjectInfo] = []
    done = True
    async for info in fabric.objects.infos(checkpoint):
        if info.timestamp > horizon:
            break
        if len(infos) == SLICE:
            done = False
            break
        if not info.complete and (await fabric.objects.last_chunk_at(info.name) or 0) > horizon:
            break  # on its way, slowly: it and what came later is for the next time
        infos.append(info)
    candidates = [orphan for orphan in map(Orphan.of, infos) if orphan is not None]
    records = await fabric.log.last([orphan.subject for orphan in candidates])
    count = 0
    for orphan, record in zip(candidates, records, strict=True):
        if not _refers(record, orphan) and await collect(fabric, orphan):
            count += 1
    if count:
        logger.info("bucket %s: collected %s without an event", fabric.objects.bucket, number_of(count, "value"))
    return count, infos[-1].sequence if infos else checkpoint, done


def _refers(record: Record | None, orphan: Orphan) -> bool:
    # The name is unique, so that it is enough to find it; a header that cannot be read counts as well.
    return record is not None and orphan.name in record.headers.get(EVENT_HEADER, "")
