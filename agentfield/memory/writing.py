"""Writing: from a value to a stored event, alone or together with others.

Owns: the order of the steps of every write. Everything is validated and encoded first; then what is personal is
encrypted; then a value too large for an event is stored as an object; then timers are set, so that whatever will have
to end is known to end; then the event is appended. A crash in between leaves an object that is collected and a timer
that fires for nothing, never half a value, nor one that outlives its time. For the same reason a write never moves the
timer of another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from agentfield import execution
from agentfield.amount import number_of
from agentfield.errors import (
    AgentFieldError,
    ClosedError,
    ConflictError,
    InvalidInputError,
    OutcomeUnknownError,
    UnavailableError,
)
from agentfield.event import Writer
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import BatchItem, Expectation, append_batch, check_count
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff
from agentfield.header import EVENT_ID, encode_event
from agentfield.memory.encrypting import are_condemned, encrypted, vault_for
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.placing import give_up, place, was_condemned
from agentfield.memory.preparing import Write
from agentfield.memory.timing import set_timers, timer_moment

logger = logging.getLogger("agentfield.writing")

_DOUBT = 10_000_000
"""Nanoseconds by which our notion of the server's clock may be off, with a large margin."""
_UNDECIDED_TRIES = 10
"""How often an encrypted write is tried that meets another one's check of the same key, not yet decided."""
_PLACINGS = 3
"""Times that large values are stored for one write: again only if that took longer than orphans are left alone."""


async def store(
    fabric: Fabric, lifetimes: Lifetimes, write: Write, expected: int | None, *, repeated: bool = False
) -> int:
    """Append one write; return its revision. :class:`ConflictError` if the key's revision is not ``expected``.

    ``repeated``: an earlier call with the same event id had an open outcome; if that one stored it, so be it.
    """
    if write.large or vault_for(fabric, write) is not None:
        expectations = [] if expected is None else [Expectation(write.subject, expected)]
        try:
            sequence = await store_together(fabric, lifetimes, [write], expectations, repeated=repeated)
        except Conflict as conflict:
            raise ConflictError(write.key, expected=expected, actual=conflict.actual) from None
        if repeated:
            await check_same(fabric, [write], sequence)
        return sequence
    first = await _set_timers(fabric, lifetimes, [write])
    try:
        ack = await fabric.log.append(write.subject, write.payload, write.headers, expected=expected, repeated=repeated)
    except Conflict as conflict:
        raise ConflictError(write.key, expected=expected, actual=conflict.actual) from None
    if repeated and ack.duplicate:
        await check_same(fabric, [write], ack.sequence)
    await _catch_up(fabric, [write], first)
    return ack.sequence


async def check_same(fabric: Fabric, writes: Sequence[Write], sequence: int) -> None:
    """See that what lies at ``sequence``, and just before, are these writes, which were given the id of earlier ones.

    The server takes a write whose id it knows for a repetition, whatever it is about. Raises
    :class:`InvalidInputError` if the id belongs to writes to other keys: none of these is stored then.
    """
    id = writes[-1].headers[EVENT_ID]
    try:
        if len(writes) == 1:
            record = await fabric.log.at(sequence)
            found = [] if record is None else [record]
        else:
            found = [each async for each in fabric.log.read([">"], start=sequence - len(writes) + 1, stop=sequence)]
    except (UnavailableError, ClosedError) as error:
        raise OutcomeUnknownError(
            f"something is stored as event_id={id!r}, but whether it is this write could not be asked ({error})",
            event_id=id,
        ) from None
    meant = {(write.subject, write.headers[EVENT_ID]) for write in writes}
    others = any((record.subject, record.headers.get(EVENT_ID)) not in meant for record in found)
    if others or sequence < len(writes):
        raise InvalidInputError(
            f"event_id={id!r} was given to another write before, of other keys, which is stored as revision "
            f"{sequence}: nothing was written; give a write an id of its own, or leave it out"
        )


async def store_together(
    fabric: Fabric,
    lifetimes: Lifetimes,
    writes: Sequence[Write],
    expectations: Sequence[Expectation] = (),
    *,
    repeated: bool = False,
    after: int | None = None,
) -> int:
    """Append all writes or none, if every expectation holds; return the revision of the last.

    ``after``, for writes of which none is large or personal: only if that is the log's last sequence.

    An expectation on a key that is written rides on its write, any other on a message that has none yet, and, where
    there are more of them than writes, on messages of their own beside the keys' subjects. Raises
    :class:`~agentfield.fabric.appending.Conflict` without saying which; nothing is stored then.
    """
    check_count(_messages(writes, expectations))
    if any(vault_for(fabric, write) is not None for write in writes):
        return await _store_encrypted(fabric, lifetimes, writes, expectations, repeated=repeated)
    return await _store_all(fabric, lifetimes, writes, expectations, repeated=repeated, after=after)


async def _store_encrypted(
    fabric: Fabric,
    lifetimes: Lifetimes,
    writes: Sequence[Write],
    expectations: Sequence[Expectation],
    *,
    repeated: bool,
) -> int:
    """Append all writes or none, what is personal encrypted with keys that are not being destroyed by then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + fabric.log.timeout
    attempt = 0
    while True:
        sealed, guards = await encrypted(fabric, writes)
        checks = [*expectations, *guards]
        check_count(_messages(sealed, checks))
        try:
            return await _store_all(fabric, lifetimes, sealed, checks, repeated=repeated)
        except Conflict as conflict:
            if await are_condemned(fabric, guards):
                fabric.keys.forget()  # once they are destroyed, new ones take their places
                if loop.time() > deadline:
                    raise UnavailableError(
                        f"{writes[0].key!r} is personal, and an erasure is destroying its key, but does not come to "
                        "its end: nothing was written; run `agentfield erase` again to finish it"
                    ) from None
            elif expectations and (conflict.actual is not None or attempt >= _UNDECIDED_TRIES):
                raise
            elif loop.time() > deadline:
                raise UnavailableError(
                    f"{writes[0].key!r} met undecided writes of the same scope for too long; nothing was written"
                ) from None
        await asyncio.sleep(backoff(attempt))
        attempt += 1


async def _store_all(
    fabric: Fabric,
    lifetimes: Lifetimes,
    writes: Sequence[Write],
    expectations: Sequence[Expectation],
    *,
    repeated: bool,
    after: int | None = None,
) -> int:
    if any(write.large for write in writes):
        return await _store_large(fabric, lifetimes, writes, expectations, repeated=repeated)
    items = assemble(fabric, writes, expectations)
    first = await _set_timers(fabric, lifetimes, writes)
    sequence = await append_batch(fabric.log, items, repeated=repeated, after=after)
    await _catch_up(fabric, writes, first)
    return sequence


async def _store_large(
    fabric: Fabric,
    lifetimes: Lifetimes,
    writes: Sequence[Write],
    expectations: Sequence[Expectation],
    *,
    repeated: bool,
) -> int:
    """Append all writes or none, the values of large ones being whole by then."""
    if not repeated:
        await _check(fabric, expectations)
    for _ in range(_PLACINGS):
        sent = [await _placed(fabric, write) if write.large else write for write in writes]
        first = await _set_timers(fabric, lifetimes, writes)
        objects = [write.placed for write in sent if write.placed is not None]
        try:
            sequence = await append_batch(fabric.log, assemble(fabric, sent, expectations), repeated=repeated)
        except Conflict:
            if await was_condemned(fabric, objects):
                continue  # we were gone for so long that the objects were taken for orphans: store them anew
            await give_up(fabric, objects)
            raise
        await _catch_up(fabric, writes, first)
        return sequence
    raise UnavailableError(
        f"storing the values of {number_of(len(writes), 'write')} took so long that they passed for abandoned, "
        f"{_PLACINGS} times; nothing was written: store fewer at once"
    )


async def _check(fabric: Fabric, expectations: Sequence[Expectation]) -> None:
    """Raise at once what would only come after everything large had been sent; the server checks again."""
    records = await fabric.log.last([expectation.subject for expectation in expectations]) if expectations else []
    for expectation, record in zip(expectations, records, strict=True):
        actual = 0 if record is None else record.sequence
        if actual != expectation.sequence:
            raise Conflict(actual)


async def _placed(fabric: Fabric, write: Write) -> Write:
    placed = await place(fabric, write.scope, write.key, write.subject, write.payload, write.headers)
    return write._replace(payload=placed.payload, headers=placed.headers, placed=placed)


def _messages(writes: Sequence[Write], expectations: Sequence[Expectation]) -> int:
    """How many messages ``assemble`` will make of these."""
    written = {write.subject for write in writes}
    own = {expectation.subject for expectation in expectations} & written
    others = len(expectations) - len(own) + sum(write.large for write in writes)
    return len(writes) + max(0, others - (len(writes) - len(own)))


def assemble(fabric: Fabric, writes: Sequence[Write], expectations: Sequence[Expectation]) -> list[BatchItem]:
    """The messages of an atomic batch. Pure, but for the ids of messages that only check."""
    written = {write.subject for write in writes}
    own = {item.subject: item for item in expectations if item.subject in written}
    others = [item for item in expectations if item.subject not in written]
    others += [write.placed.guard for write in writes if write.placed is not None]
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


async def _set_timers(fabric: Fabric, lifetimes: Lifetimes, writes: Sequence[Write]) -> int | None:
    """See that everything to be written will end; return when the first of the keys' timers fires."""
    for scope in {write.scope for write in writes}:
        await lifetimes.touch(fabric, scope)
    now = fabric.log.now()
    timed = [(write.subject, timer_moment(now, write.ttl)) for write in writes if write.ttl is not None]
    await set_timers(fabric, timed)
    return min((at for _, at in timed), default=None)


async def _catch_up(fabric: Fabric, writes: Sequence[Write], first: int | None) -> None:
    """If storing took so long that a timer may have fired before there was anything to end: set them all once more."""
    now = fabric.log.now()
    if first is None or now < first - _DOUBT:
        return
    try:
        timed = [(write.subject, timer_moment(now, write.ttl)) for write in writes if write.ttl is not None]
        await set_timers(fabric, timed)
    except AgentFieldError as error:
        logger.warning("the values are stored, but the timers of %s are late: %s", number_of(len(writes), "key"), error)
