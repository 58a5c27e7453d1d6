"""Clearing: taking every key of a scope away, as events.

Owns: deleting many keys in atomic batches, each only if it still is what was seen; so a write that comes meanwhile
stays. Used for ``clear()``, for workflows that ended and for sessions that went idle.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentfield.codec import Record, decode_entry
from agentfield.errors import ConflictError
from agentfield.event import Reason, Writer
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.log import Conflict
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.state import live_entries
from agentfield.memory.writing import Write, prepare, store, store_together
from agentfield.pattern import Pattern
from agentfield.scope import Scope

BATCH = 500
"""Deletes stored together."""
_NO_LIFETIMES = Periods(workflow=None, session=None)


async def clear(fabric: Fabric, scope: Scope, writer: Writer, reason: Reason) -> int:
    """Delete every live key of a scope; return how many were deleted.

    A key written meanwhile is kept. An interruption leaves the rest in place; calling again goes on.
    """
    records = [record async for record in live_entries(fabric, [Pattern.parse("*")], [(scope.kind, scope.id)])]
    count = 0
    for begin in range(0, len(records), BATCH):
        count += await delete_all(fabric, records[begin : begin + BATCH], writer, reason)
    return count


async def delete_all(fabric: Fabric, records: Sequence[Record], writer: Writer | None, reason: Reason) -> int:
    """Delete the keys of these records (at most a batch) unless they have been written since; return how many.

    The ids of the deletes derive from the events they end, so two processes at it store each delete once. Without a
    ``writer``, each delete is put down to the workflow and session of the write that it ends.
    """
    lifetimes = Lifetimes(_NO_LIFETIMES)
    writes = [_delete_of(fabric, record, writer, reason) for record in records]
    expectations = [Expectation(record.subject, record.sequence) for record in records]
    if not writes:
        return 0
    try:
        await store_together(fabric, lifetimes, writes, expectations)
        return len(writes)
    except Conflict:
        pass  # some key has been written since: one by one, to find which may still go
    count = 0
    for write, record in zip(writes, records, strict=True):
        try:
            await store(fabric, lifetimes, write, record.sequence)
        except ConflictError:
            continue
        count += 1
    return count


def _delete_of(fabric: Fabric, record: Record, writer: Writer | None, reason: Reason) -> Write:
    entry = decode_entry(record, fabric.subjects)
    origin = entry.writer
    event_id = f"{record.headers['Nats-Msg-Id']}-{reason}"
    return prepare(
        fabric,
        Scope(entry.scope, entry.scope_id),
        entry.key,
        "delete",
        b"",
        writer or Writer(workflow_id=origin.workflow_id, session_id=origin.session_id, trace=origin.trace),
        event_id=event_id,
        reason=reason,
    )
