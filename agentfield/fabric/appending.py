"""Appending: one event into a stream, once, whatever becomes of the tries.

Owns: publishing with an event id and the expectation, the bounded retry, and telling an own success from somebody
else's. Must not know: keys, scopes, values. Invariants: an acknowledged append is durable; an append is stored at most
once however often it is tried; "nothing was stored" is only said when it is known.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import orjson

from agentfield.errors import ClosedError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.fabric.asking import Asking
from agentfield.fabric.faults import (
    ConnectionLostFault,
    Fault,
    NoAnswerFault,
    NoRespondersFault,
    ServerFault,
    Verdict,
    error_of,
)
from agentfield.fabric.jetstream import ATTEMPT, backoff
from agentfield.fabric.stream import Stream
from agentfield.header import EVENT_ID

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_ON = "Nats-Expected-Last-Subject-Sequence-Subject"
"""The expectation is on this literal subject instead of the event's own; with a wildcard it would be unsafe."""
_HEADER_ROOM = 1024
"""Bytes kept free in a message for what the server and the client add to its headers."""
_HEADERS_AT_MOST = 65_535 + _HEADER_ROOM
"""Bytes that the headers of a message can have at all; the server refuses more by another rule."""


class Ack(NamedTuple):
    """The server's word that an event is stored: its sequence in the log, and whether an earlier try had stored it."""

    sequence: int
    duplicate: bool


class Conflict(Fault):
    """The expectation of an append did not hold; nothing was stored."""

    def __init__(self, actual: int | None) -> None:
        super().__init__(f"the last sequence is {actual}")
        self.actual = actual


class Appending:
    """The way into one stream."""

    def __init__(self, stream: Stream, asking: Asking) -> None:
        self._stream = stream
        self._asking = asking

    async def append(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str],
        *,
        expected: int | None = None,
        on: str | None = None,
        repeated: bool = False,
    ) -> Ack:
        """See :meth:`~agentfield.fabric.log.Log.append`."""
        self.check_size(subject, payload, headers)
        if expected is not None:
            headers = {**headers, EXPECTED: str(expected)} | ({EXPECTED_ON: on} if on is not None else {})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stream.timeout
        unknown = False
        attempt = 0
        while True:
            pause = backoff(attempt)
            attempt += 1
            try:
                remaining = deadline - loop.time()
                answer = await self._stream.connection.request(
                    subject, payload, headers, timeout=min(ATTEMPT, max(0.001, remaining))
                )
                ack = orjson.loads(answer.payload)
                if "error" not in ack:
                    return Ack(ack["seq"], ack.get("duplicate", False))
                fault: Fault = ServerFault.of(ack["error"])
            except (NoAnswerFault, NoRespondersFault) as caught:
                fault = caught
                unknown = unknown or isinstance(caught, NoAnswerFault)
                if isinstance(caught, ConnectionLostFault):
                    pause = 0.0  # the next try waits for the connection by itself
            except UnavailableError as error:
                if loop.time() + pause < deadline:
                    fault = NoAnswerFault(str(error))
                elif unknown:
                    raise self._unknown(subject, headers) from None
                else:
                    raise
            except ClosedError:
                if unknown:
                    raise self._unknown(subject, headers) from None
                raise
            if isinstance(fault, ServerFault) and not (fault.in_flight and (unknown or repeated)):
                if fault.verdict is Verdict.CONFLICT:
                    actual = fault.actual_sequence
                    if (unknown or repeated) and expected is not None:
                        try:
                            own = await self._stored_after(subject, expected if on is None else None, headers[EVENT_ID])
                        except (UnavailableError, ClosedError):
                            raise self._unknown(subject, headers) from None
                        if own is not None:
                            return Ack(own, True)
                    raise Conflict(actual)
                if fault.verdict is not Verdict.RETRY:
                    raise error_of(fault, f"writing {subject!r}")
            if loop.time() + pause >= deadline:
                if unknown or (isinstance(fault, ServerFault) and fault.in_flight):
                    raise self._unknown(subject, headers)
                raise error_of(fault, f"writing {subject!r} (nothing was stored)")
            await asyncio.sleep(pause)

    def check_size(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Raises InvalidInputError if an event is larger than the server takes in one message."""
        limit = self._stream.connection.max_payload
        if len(payload) + _HEADERS_AT_MOST <= limit:
            return
        size = len(payload) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + _HEADER_ROOM
        if size > limit:
            raise InvalidInputError(
                f"the value is {len(payload)} bytes as JSON; one event may take {limit - _HEADER_ROOM} bytes here; "
                "store less, or split it over several keys; nothing was written"
            )

    def _unknown(self, subject: str, headers: dict[str, str]) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"writing {subject!r}: sent, but the server did not confirm it within {self._stream.timeout:g} s; it may "
            f"or may not be stored; trying again with event_id={headers[EVENT_ID]!r} within two minutes cannot store "
            "it twice",
            event_id=headers[EVENT_ID],
        )

    async def _stored_after(self, subject: str, sequence: int | None, event_id: str) -> int | None:
        """Where the event ``event_id`` is stored, if it is the subject's first after ``sequence`` (None: its last).

        This is how a write whose first try went unanswered tells its own success from somebody else's: the server
        checks the expectation before it looks for duplicates.
        """
        body = {"last_by_subj": subject} if sequence is None else {"seq": sequence + 1, "next_by_subj": subject}
        record = await self._asking.leader_get(body)
        return record.sequence if record is not None and record.headers.get(EVENT_ID) == event_id else None
