"""Clearing: taking every key of a scope away, as events.

Owns: deleting many keys in atomic batches, each only if it still is what was seen; so a write that comes meanwhile
stays. Used for ``clear()``, for workflows that ended and for sessions that went idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from agentfield.codec import Record, decode_outline, is_delete
from agentfield.errors import ConflictError, DecodeError, InvalidInputError, UnavailableError
from agentfield.event import Reason, Writer
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.preparing import Write, prepare
from agentfield.memory.state import is_live
from agentfield.memory.writing import store, store_together
from agentfield.pattern import Pattern
from agentfield.scope import Scope

logger = logging.getLogger("agentfield.clearing")

BATCH = 500
"""Deletes stored together."""
_TRIES = 20
"""How often a delete that meets an undecided write is tried: for some seconds, about as long as an election takes."""
_NO_LIFETIMES = Periods(workflow=None, session=None)


class Deleted(NamedTuple):
    """How many keys were deleted, and the revision of the last delete (0 for none)."""

    number: int
    revision: int


async def clear(fabric: Fabric, scope: Scope, writer: Writer | None, reason: Reason) -> Deleted:
    """Delete every live key of a scope.

    A key written meanwhile is kept; one that has expired is left to its own event. What something other than agentfield
    put there goes, too. An interruption leaves the rest in place; calling again goes on.
    """
    now = fabric.log.now()
    records = []
    async for record in fabric.log.current(fabric.subjects.filters([Pattern.parse("*")], [(scope.kind, scope.id)])):
        if is_to_go(record, now):
            records.append(record._replace(payload=b""))  # a scope may hold more than fits here
    return await delete_each(fabric, records, writer, reason)


async def delete_each(fabric: Fabric, records: Sequence[Record], writer: Writer | None, reason: Reason) -> Deleted:
    """As :func:`delete_all`, for any number of records, a batch at a time."""
    count = revision = 0
    for begin in range(0, len(records), BATCH):
        deleted = await delete_all(fabric, records[begin : begin + BATCH], writer, reason)
        count, revision = count + deleted.number, max(revision, deleted.revision)
    return Deleted(count, revision)


async def delete_all(fabric: Fabric, records: Sequence[Record], writer: Writer | None, reason: Reason) -> Deleted:
    """Delete the keys of these records (at most a batch) unless they have been written since.

    Each delete expects the very event it ends, so of several processes at it one deletes each. Without a ``writer``,
    each delete is put down to the workflow and session of the write that it ends; and if its ``reason`` is that the
    value has expired, that write is its cause. Its depth is none: what happens because time has passed is no loop.
    """
    lifetimes = Lifetimes(_NO_LIFETIMES)
    pairs = [(write, record.sequence) for record in records if (write := _delete_of(fabric, record, writer, reason))]
    if not pairs:
        return Deleted(0, 0)
    expectations = [Expectation(write.subject, sequence) for write, sequence in pairs]
    try:
        revision = await store_together(fabric, lifetimes, [write for write, _ in pairs], expectations)
        return Deleted(len(pairs), revision)
    except Conflict:
        pass  # some key has been written since: one by one, to find which may still go
    count = revision = 0
    for write, sequence in pairs:
        stored = await _delete_one(fabric, lifetimes, write, sequence)
        if stored:
            count, revision = count + 1, stored
    return Deleted(count, revision)


async def _delete_one(fabric: Fabric, lifetimes: Lifetimes, write: Write, sequence: int) -> int:
    """Delete one key unless it has been written since; return the revision, 0 if it has."""
    for attempt in range(_TRIES):
        try:
            return await store(fabric, lifetimes, write, sequence)
        except ConflictError as conflict:
            if conflict.actual is not None:
                return 0
        # Another write of the key, or a check of it, is on its way, and may yet come to nothing.
        await asyncio.sleep(backoff(attempt))
    raise UnavailableError(f"deleting {write.key!r}: its log has been undecided for too long; nothing was written")


def is_to_go(record: Record, now: int) -> bool:
    """Whether clearing its scope ends this record, its key's last: a value, or something that we cannot read."""
    try:
        return is_live(record, now)
    except DecodeError:
        return not is_delete(record)


def _delete_of(fabric: Fabric, record: Record, writer: Writer | None, reason: Reason) -> Write | None:
    """The delete of a record's key; None if no key has that subject."""
    try:
        scope, key = fabric.subjects.parse(record.subject)
    except InvalidInputError as error:
        logger.warning("left in the log, since it is no key's: %s", error)
        return None
    return prepare(fabric, scope, key, "delete", b"", writer or _nobody(fabric, record, reason), reason=reason)


def _nobody(fabric: Fabric, record: Record, reason: Reason) -> Writer:
    """Who deletes a record that nobody asked to delete."""
    try:
        ended = decode_outline(record, fabric.subjects)
    except DecodeError:
        return Writer()
    origin = ended.writer
    by = Writer(workflow_id=origin.workflow_id, session_id=origin.session_id, trace=origin.trace)
    return by if reason != "expired" else by.model_copy(update={"cause": ended.id, "cause_revision": ended.revision})
