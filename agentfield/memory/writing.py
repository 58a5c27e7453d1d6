"""Writing: from a value to a stored event, alone or together with others.

Owns: the order of the steps of every write. Everything is validated and encoded first; then timers are set, so that
whatever will have to end is known to end; then the event is appended. A crash in between leaves a timer that fires for
nothing, never a value that outlives its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from agentfield import execution
from agentfield.codec import check_ttl, encode_event
from agentfield.errors import ConflictError, InvalidInputError
from agentfield.event import Operation, Reason, Writer
from agentfield.fabric.batch import BatchItem, Expectation, append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.log import Conflict
from agentfield.memory.lifetime import Lifetimes
from agentfield.scope import Scope

_TIMER_SLACK = 50_000_000
"""Nanoseconds a timer is set past the ttl, since the event's own time is a little later than the timer's."""
_TIMERS_AT_ONCE = 200


class Write(NamedTuple):
    """A write, validated and encoded, not yet sent."""

    scope: Scope
    key: str
    subject: str
    payload: bytes
    headers: dict[str, str]
    ttl: float | None


def prepare(
    fabric: Fabric,
    scope: Scope,
    key: str,
    operation: Operation,
    payload: bytes,
    writer: Writer,
    *,
    ttl: float | None = None,
    event_id: str | None = None,
    reason: Reason | None = None,
) -> Write:
    """Validate and encode. Raises :class:`InvalidInputError`."""
    if ttl is not None:
        ttl = check_ttl(ttl)
    subject = fabric.subjects.memory(scope, key)
    headers = encode_event(
        event_id=event_id or execution.new_id(), operation=operation, writer=writer, ttl=ttl, reason=reason
    )
    fabric.log.check_size(subject, payload, headers)
    return Write(scope, key, subject, payload, headers, ttl)


def check_revision(revision: int | None) -> None:
    """Raises :class:`InvalidInputError` unless this can be a revision, or is None."""
    if revision is not None and (type(revision) is not int or revision < 0):
        raise InvalidInputError(
            f"if_revision={revision!r} is not a revision: give the integer that set() or entry() gave"
        )


async def store(fabric: Fabric, lifetimes: Lifetimes, write: Write, expected: int | None) -> int:
    """Append one write; return its revision. :class:`ConflictError` if the key's revision is not ``expected``."""
    await _set_timers(fabric, lifetimes, [write])
    try:
        ack = await fabric.log.append(write.subject, write.payload, write.headers, expected=expected)
    except Conflict as conflict:
        raise ConflictError(write.key, expected=expected, actual=conflict.actual) from None
    return ack.sequence


async def store_together(
    fabric: Fabric,
    lifetimes: Lifetimes,
    writes: Sequence[Write],
    expectations: Sequence[Expectation] = (),
) -> int:
    """Append all writes or none, if every expectation holds; return the revision of the last.

    An expectation on a key that is written rides on its write, any other on a message that has none yet, and, where
    there are more of them than writes, on messages of their own beside the keys' subjects. Raises
    :class:`~agentfield.fabric.log.Conflict` without saying which; nothing is stored then.
    """
    items = assemble(fabric, writes, expectations)
    await _set_timers(fabric, lifetimes, writes)
    return await append_batch(fabric.log, items)


def assemble(fabric: Fabric, writes: Sequence[Write], expectations: Sequence[Expectation]) -> list[BatchItem]:
    """The messages of an atomic batch. Pure, but for the ids of messages that only check."""
    written = {write.subject for write in writes}
    own = {item.subject: item for item in expectations if item.subject in written}
    others = [item for item in expectations if item.subject not in written]
    items = []
    for write in writes:
        expectation = own.pop(write.subject, None)
        if expectation is None and others:
            expectation = others.pop()
        items.append(BatchItem(write.subject, write.payload, write.headers, expectation))
    namespace = fabric.subjects.namespace
    for number, expectation in enumerate(others):
        headers = encode_event(event_id=execution.new_id(), operation="set", writer=Writer())
        items.insert(0, BatchItem(f"{namespace}.checks.{number}", b"null", headers, expectation))
    return items


async def _set_timers(fabric: Fabric, lifetimes: Lifetimes, writes: Sequence[Write]) -> None:
    for scope in {write.scope for write in writes}:
        await lifetimes.touch(fabric, scope)
    timed = [write for write in writes if write.ttl is not None]
    for begin in range(0, len(timed), _TIMERS_AT_ONCE):
        await asyncio.gather(*(_expire(fabric, write) for write in timed[begin : begin + _TIMERS_AT_ONCE]))


async def _expire(fabric: Fabric, write: Write) -> None:
    assert write.ttl is not None
    at = fabric.log.now() + round(write.ttl * 1_000_000_000) + _TIMER_SLACK
    await fabric.timers.schedule(timer_name(fabric, write.subject), at)


def timer_name(fabric: Fabric, subject: str) -> str:
    """The timer of a key: ``key.<scope>.<id>.<tokens>``."""
    return f"key.{subject.removeprefix(f'{fabric.subjects.namespace}.memory.')}"
