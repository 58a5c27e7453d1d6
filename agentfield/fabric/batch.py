"""Several events as one: stored together, or none of them.

Owns: the server's atomic batch protocol (ADR-50) and its bounded retry. Must not know: keys, scopes, transactions.
Invariants: after any failure either nothing of the batch is stored, or all of it and the error says that this is open
(:class:`OutcomeUnknownError`); a batch is stored at most once however often it is tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from agentfield.codec import EVENT_ID
from agentfield.errors import InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.execution import new_id
from agentfield.fabric.faults import Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import ATTEMPT, backoff
from agentfield.fabric.log import EXPECTED, EXPECTED_ON, Conflict, Log

logger = logging.getLogger("agentfield.log")

MAX_BATCH = 1000
"""Messages that one batch may hold (the server answers error 10199 above)."""
_BATCH_ID = "Nats-Batch-Id"
_BATCH_SEQUENCE = "Nats-Batch-Sequence"
_BATCH_COMMIT = "Nats-Batch-Commit"


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


async def append_batch(log: Log, items: Sequence[BatchItem]) -> int:
    """Store all items, in their order, or none; return the sequence of the last. The others lie just before it.

    Tries again, with the same event ids, while the outcome is open, up to the log's timeout. Raises :class:`Conflict`
    (an expectation did not hold; nothing is stored), :class:`UnavailableError` (nothing is stored),
    :class:`OutcomeUnknownError` (sent and never answered: all of it may be stored, or nothing), and
    :class:`InvalidInputError` (too many, or one too large; nothing was sent).
    """
    if not items:
        raise InvalidInputError("a batch without events")
    if len(items) > MAX_BATCH:
        raise InvalidInputError(
            f"{len(items)} writes at once: at most {MAX_BATCH} can be stored together; split them; nothing was written"
        )
    for item in items:
        log.check_size(item.subject, item.payload, item.headers)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + log.timeout
    unknown = False
    attempt = 0
    while True:
        fault: Fault
        try:
            return await _try(log, items, min(ATTEMPT, max(0.001, deadline - loop.time())))
        except ServerFault as caught:
            if caught.verdict is Verdict.COMMITTED:
                return await _committed(log, items[-1])
            if caught.verdict is Verdict.CONFLICT:
                raise Conflict(caught.actual_sequence) from None
            if caught.verdict is not Verdict.RETRY:
                raise error_of(caught, f"writing {len(items)} events (nothing was stored)") from None
            fault = caught
        except (NoAnswerFault, NoRespondersFault) as caught:
            unknown = unknown or isinstance(caught, NoAnswerFault)
            fault = caught
        except UnavailableError as error:
            fault = NoRespondersFault(str(error))
        pause = backoff(attempt)
        attempt += 1
        if loop.time() + pause >= deadline:
            if unknown:
                raise OutcomeUnknownError(
                    f"writing {len(items)} events together: sent, but not confirmed within {log.timeout:g} s; all of "
                    "them may be stored, or none",
                    event_id=items[-1].headers[EVENT_ID],
                )
            raise error_of(fault, f"writing {len(items)} events (nothing was stored)")
        await asyncio.sleep(pause)


async def _try(log: Log, items: Sequence[BatchItem], timeout: float) -> int:
    batch = new_id()
    connection = log.connection
    for number, item in enumerate(items, 1):
        headers = expecting(item.headers, item.subject, item.expectation)
        headers[_BATCH_ID] = batch
        headers[_BATCH_SEQUENCE] = str(number)
        if number < len(items):
            await connection.publish(item.subject, item.payload, headers)
            continue
        headers[_BATCH_COMMIT] = "1"
        answer = orjson.loads((await connection.request(item.subject, item.payload, headers, timeout=timeout)).payload)
        if "error" in answer:
            raise ServerFault.of(answer["error"])
        sequence: int = answer["seq"]
        return sequence
    raise AssertionError("unreachable: the last item commits")


async def _committed(log: Log, last: BatchItem) -> int:
    """Where an earlier try of this batch was stored. Repeating an id without expectation only asks for that."""
    return (await log.append(last.subject, last.payload, last.headers)).sequence
