"""Several events as one: stored together, or none of them.

Owns: the server's atomic batch protocol (ADR-50) and its bounded retry. Must not know: keys, scopes, transactions.
Invariants: after any failure either nothing of the batch is stored, or all of it and the error says that this is open
(:class:`OutcomeUnknownError`); a batch is stored at most once however often it is tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from agentfield.amount import number_of
from agentfield.codec import Record
from agentfield.errors import ClosedError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.execution import new_id
from agentfield.fabric.appending import EXPECTED, EXPECTED_ON, Conflict
from agentfield.fabric.faults import Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import ATTEMPT, backoff
from agentfield.fabric.log import Log
from agentfield.fabric.topology import DUPLICATE_WINDOW
from agentfield.fabric.wire.connection import Connection
from agentfield.header import EVENT_ID

logger = logging.getLogger("agentfield.log")

MAX_BATCH = 1000
"""Messages that one batch may hold (the server answers error 10199 above)."""
_AT_A_TIME = 100
"""Messages after which what there is goes out: the server works on it while the rest is being written."""
_BATCH_ID = "Nats-Batch-Id"
_BATCH_SEQUENCE = "Nats-Batch-Sequence"
_BATCH_COMMIT = "Nats-Batch-Commit"
_EXPECTED_LAST = "Nats-Expected-Last-Sequence"
"""The sequence of the stream's last message, of whatever subject; in a batch, its first message may say so."""


class Expectation(NamedTuple):
    """The last sequence that a literal subject must have when the event is stored; 0: none yet."""

    subject: str
    sequence: int


class BatchItem(NamedTuple):
    """One event of a batch, with at most one expectation, on its own or on another subject."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    expectation: Expectation | None = None


def expecting(headers: dict[str, str], subject: str, expectation: Expectation | None) -> dict[str, str]:
    """A copy of an event's headers that carries an expectation."""
    if expectation is None:
        return dict(headers)
    if expectation.subject == subject:
        return {**headers, EXPECTED: str(expectation.sequence)}
    return {**headers, EXPECTED: str(expectation.sequence), EXPECTED_ON: expectation.subject}


async def append_batch(
    log: Log, items: Sequence[BatchItem], *, repeated: bool = False, after: int | None = None
) -> int:
    """Store all items, in their order, or none; return the sequence of the last. The others lie just before it.

    Tries again, with the same event ids, while the outcome is open, up to the log's timeout. ``repeated`` says that an
    earlier call with these ids had an open outcome: what that one stored is no conflict. ``after``: only if that is the
    log's last sequence, so that it is known beforehand where each item will be. Raises :class:`Conflict`
    (an expectation did not hold; nothing is stored), :class:`UnavailableError` (nothing is stored),
    :class:`OutcomeUnknownError` (sent and never answered: all of it may be stored, or nothing), and
    :class:`InvalidInputError` (too many, or one too large: nothing was sent; or the ids of other events).
    """
    check_count(len(items))
    for item in items:
        log.check_size(item.subject, item.payload, item.headers)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + log.timeout
    unknown = repeated
    searched = False
    attempt = 0
    while True:
        fault: Fault | UnavailableError
        try:
            async with asyncio.timeout_at(deadline):
                await log.batches.acquire()
            try:
                limit = min(ATTEMPT, max(0.001, deadline - loop.time()))
                return await send_together(log.connection, items, limit, after=after)
            finally:
                log.batches.release()
        except TimeoutError:
            fault = UnavailableError("so many batches were waiting before this one that its time is over")
        except ServerFault as caught:
            fault = caught
            if caught.verdict is Verdict.COMMITTED or (caught.verdict is Verdict.CONFLICT and unknown):
                # An earlier try has been stored, or stands in its own way, or somebody else was faster: the log knows.
                try:
                    sequence = await _stored(log, items, known=caught.verdict is Verdict.COMMITTED and not searched)
                except (UnavailableError, ClosedError):
                    raise _unknown(log, items) from None
                if sequence is not None:
                    return sequence
                unknown = unknown or caught.verdict is Verdict.COMMITTED
                searched = searched or caught.verdict is Verdict.COMMITTED
            if caught.verdict is Verdict.CONFLICT and not (unknown and caught.in_flight):
                raise Conflict(caught.actual_sequence) from None
            if caught.verdict not in (Verdict.RETRY, Verdict.COMMITTED, Verdict.CONFLICT):
                raise error_of(caught, f"writing {number_of(len(items), 'event')} (nothing was stored)") from None
        except (NoAnswerFault, NoRespondersFault) as caught:
            unknown = unknown or isinstance(caught, NoAnswerFault)
            fault = caught
        except UnavailableError as error:
            fault = error
        except ClosedError:
            if unknown:
                raise _unknown(log, items) from None
            raise
        pause = backoff(attempt)
        attempt += 1
        if loop.time() + pause >= deadline:
            if unknown:
                raise _unknown(log, items)
            raise error_of(fault, f"writing {number_of(len(items), 'event')} (nothing was stored)")
        await asyncio.sleep(pause)


def check_count(number: int) -> None:
    """Raises :class:`InvalidInputError` unless so many messages fit into one batch."""
    if not number:
        raise InvalidInputError("a batch without events")
    if number > MAX_BATCH:
        raise InvalidInputError(
            f"{number} writes and checks at once: at most {MAX_BATCH} can be stored together; split them; nothing was "
            "written"
        )


def _unknown(log: Log, items: Sequence[BatchItem]) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"writing {number_of(len(items), 'event')} together: sent, but not confirmed within {log.timeout:g} s; all of "
        "it may be stored, or nothing",
        event_id=items[-1].headers[EVENT_ID],
    )


async def send_together(
    connection: Connection, items: Sequence[BatchItem], timeout: float, *, after: int | None = None
) -> int:
    """Store all items in their stream, or none; return the sequence of the last. Once: raises the faults themselves."""
    packed = [expecting(item.headers, item.subject, item.expectation) for item in items]
    if after is not None:
        packed[0][_EXPECTED_LAST] = str(after)
    *before, last = packed
    if before:  # one message alone is atomic as it is, and a batch costs the server ten times as much
        batch = new_id()
        for number, (item, headers) in enumerate(zip(items, before, strict=False), 1):
            headers |= {_BATCH_ID: batch, _BATCH_SEQUENCE: str(number)}
            await connection.publish(item.subject, item.payload, headers)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        last |= {_BATCH_ID: batch, _BATCH_SEQUENCE: str(len(items)), _BATCH_COMMIT: "1"}
    answer = await connection.request(items[-1].subject, items[-1].payload, last, timeout=timeout)
    outcome = orjson.loads(answer.payload)
    if "error" in outcome:
        raise ServerFault.of(outcome["error"])
    sequence: int = outcome["seq"]
    return sequence


async def _stored(log: Log, items: Sequence[BatchItem], *, known: bool) -> int | None:
    """Where the last item is stored, if the log holds it: then it holds them all.

    ``known`` says that the server knows one of the ids. Then the item is looked for under other subjects, too: a batch
    that is made anew, to be repeated, may have come to write other keys than the first time.
    """
    item = items[-1]
    id = item.headers[EVENT_ID]
    (last,) = await log.last([item.subject])
    if last is not None and last.headers.get(EVENT_ID) == id:
        return last.sequence
    recent = await log.sequence_at(datetime.fromtimestamp(log.now() / 1e9, UTC) - 2 * DUPLICATE_WINDOW)
    if last is not None:
        # Its key has been written since. Where to begin to look, what was expected may say, but not of a batch that was
        # made anew: that expects what the first one has led to.
        after = [each.expectation.sequence for each in items if each.expectation is not None]
        found = await _find(log, item.subject, id, min(recent, 1 + max(after, default=0)), last.sequence)
        if found is not None:
            return found
    return await _elsewhere(log, items, recent) if known else None


async def _elsewhere(log: Log, items: Sequence[BatchItem], start: int) -> int | None:
    """Where the last item is stored, under whichever subject.

    Raises :class:`InvalidInputError` if it is nowhere, but another item is: then the ids belong to several batches, and
    the server will never take this one.
    """
    ids = {item.headers[EVENT_ID] for item in items}
    taken: Record | None = None
    async with aclosing(log.read([">"], start=start)) as records:
        async for record in records:
            id = record.headers.get(EVENT_ID)
            if id == items[-1].headers[EVENT_ID]:
                return record.sequence
            if id in ids:
                taken = record
    if taken is not None:
        raise InvalidInputError(
            f"the event id {taken.headers[EVENT_ID]!r} was used for another write, revision {taken.sequence}: nothing "
            "was written; give a write an id of its own, or leave that out"
        )
    return None


async def _find(log: Log, subject: str, id: str, start: int, stop: int | None = None) -> int | None:
    async with aclosing(log.read([subject], start=start, stop=stop)) as records:
        async for record in records:
            if record.headers.get(EVENT_ID) == id:
                return record.sequence
    return None
