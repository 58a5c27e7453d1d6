"""State over patterns and scopes, now or then: the last events of many keys, without those that are gone.

Pure selection over what the log returns; both ``Memory.items`` and tools that look at any scope use it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from agentfield.codec import Record, encrypted_by, expires_at_ns, is_delete, reference_of
from agentfield.errors import DecodeError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reading.asof import as_of
from agentfield.memory.addressing import AnyScope, address
from agentfield.memory.encrypting import known
from agentfield.memory.moment import Instant
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION


async def live_entries(
    fabric: Fabric,
    patterns: Sequence[Pattern],
    scopes: Sequence[AnyScope],
    *,
    merge: bool = False,
    at: Instant | None = None,
) -> AsyncIterator[Record]:
    """The record of every live key that matches, in the order of the log; as of an instant, or now.

    With ``merge``, a key that several scopes hold comes once, from the first in resolution order.
    """
    filters = fabric.subjects.filters(patterns, scopes)
    now = fabric.log.now() if at is None else at.nanoseconds
    best: dict[str, tuple[int, Record]] = {}
    async for record in fabric.log.current(filters) if at is None else as_of(fabric.log, filters, at.sequence):
        found = address(fabric.subjects, record)
        if found is None:
            continue
        scope, key = found
        if not any(pattern.matches(key) for pattern in patterns):
            continue
        record = await known(fabric, record)
        if not is_live(record, now):
            continue
        if not merge or len(scopes) == 1:
            yield record
            continue
        rank = RESOLUTION.index(scope.kind)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, record)
    for _, record in sorted(best.values(), key=lambda item: item[1].sequence):
        yield record


def is_live(record: Record, now: int) -> bool:
    """Whether a key's last event gives it a value at ``now`` (nanoseconds): a set that has not expired.

    A value that is ``known`` to be erased is none.
    """
    if record.erased or is_delete(record):
        return False
    expires = expires_at_ns(record)
    return expires is None or expires > now


def holds_something(record: Record | None, now: int) -> bool:
    """Whether there is something to delete: a live value, or whatever it is that agentfield did not write."""
    try:
        return record is not None and is_live(record, now)
    except DecodeError:
        return True


def plain_content(record: Record | None) -> bytes | None:
    """The JSON of the value that a record gives its key for ever; empty if it takes the value away, or is no record.

    None where it is not so simple: the value expires, is encrypted, or lies in an object, or the record is not
    agentfield's.
    """
    if record is None or is_delete(record):
        return b""
    try:
        simple = expires_at_ns(record) is None and reference_of(record) is None and encrypted_by(record) is None
    except DecodeError:
        return None
    return record.payload if simple and record.payload else None
