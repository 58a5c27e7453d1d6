"""The log: appending events to it and reading them back from where they cannot be stale.

Owns: publishing with an event id, the expectation and bounded retry; strong reads, from a server that stands alone by
direct get, in a cluster from the leader. Must not know: keys, scopes, values. Invariants: an acknowledged append is
durable; an append is stored at most once however often it is tried; a read never answers behind an acknowledged append,
and never says "absent" because something was out of order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from agentfield.codec import EVENT_HEADER, EVENT_ID, Record
from agentfield.errors import (
    AccessDeniedError,
    ClosedError,
    InvalidInputError,
    OutcomeUnknownError,
    ResyncRequired,
    UnavailableError,
)
from agentfield.execution import new_id
from agentfield.fabric import records
from agentfield.fabric.client import DESCRIPTION
from agentfield.fabric.clock import ServerClock
from agentfield.fabric.connection import Connection, ConnectionState, Message
from agentfield.fabric.earlier import Earlier
from agentfield.fabric.faults import (
    NO_MESSAGE,
    ConnectionLostFault,
    Fault,
    NoAnswerFault,
    NoRespondersFault,
    ServerFault,
    Verdict,
    error_of,
)
from agentfield.fabric.jetstream import API, ATTEMPT, PATIENCE, api, backoff
from agentfield.fabric.reader import Reader
from agentfield.fabric.recognising import Proof
from agentfield.fabric.sharing import SharedReads
from agentfield.fabric.topology import StreamSpec, Topology, thaw_if_left
from agentfield.fabric.trimmed import Holding, holding

logger = logging.getLogger("agentfield.log")

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_ON = "Nats-Expected-Last-Subject-Sequence-Subject"
"""The expectation is on this literal subject instead of the event's own; with a wildcard it would be unsafe."""
MULTI_LAST_LIMIT = 1024
"""Subjects that one multi-get may answer (the server says 413 above)."""
CHUNK = 1000
"""Literal subjects that one multi-get is asked for."""
_COMPLETE, _NOTHING, _TOO_MANY = 204, 404, 413
"""The statuses with which a multi-get ends. The second is also said when a message that is there cannot be read."""
_NO_RESULTS = "No Results"
BATCHES_AT_ONCE = 8
"""Atomic batches of this process on their way at once; more wait their turn. A stream takes 50 from all clients
together (error 10210), and one refused in its middle costs as much as one that is stored."""
_PAGE = MULTI_LAST_LIMIT
"""Each page costs the server the whole search again."""
_PAGE_BYTES = 16 * 1024 * 1024
_FEW = 8
"""Up to this many subjects are cheaper as single leader gets in flight together than as a proven multi-get."""
_HEADER_ROOM = 1024
"""Bytes kept free in a message for what the server and the client add to its headers."""
_HEADERS_AT_MOST = 65_535 + _HEADER_ROOM
"""Bytes that the headers of a message can have at all; the server refuses more by another rule."""


_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""The server counts nanoseconds in 64 bits: times far beyond what a log can hold would wrap around."""

_BARRIER = '{"v":1,"type":"set"}'


class Ack(NamedTuple):
    """The server's word that an event is stored: its sequence in the log, and whether an earlier try had stored it."""

    sequence: int
    duplicate: bool


class Conflict(Fault):
    """The expectation of an append did not hold; nothing was stored."""

    def __init__(self, actual: int | None) -> None:
        super().__init__(f"the last sequence is {actual}")
        self.actual = actual


class _Page(NamedTuple):
    records: list[Record]
    up_to: int
    pending: int
    status: int


class Log:
    """The log stream of one namespace, over one connection; or, ``of`` the table, another that only grows."""

    def __init__(
        self, connection: Connection, topology: Topology, *, timeout: float = PATIENCE, of: StreamSpec | None = None
    ) -> None:
        self.connection = connection
        self.stream = (of or topology.log).name
        self.timeout = timeout
        self.alone = False
        """Whether one server has the log and no other can answer for it. In a cluster it is never so, whatever the
        number of replicas at the moment: a server that was one of them goes on answering direct gets until it has
        learnt that it is none any more, and what it says then is stale."""
        self.last_known = 0
        """The log's last sequence when its state was last asked for."""
        self.created = 0
        """When the server made the stream: nanoseconds since the epoch; 0 as long as its state was not asked for."""
        self.held = Holding(1, 0)
        """What the log held when its state was last asked for."""
        self.info: Mapping[str, Any] = {}
        """What the server said of the stream then."""
        self.earlier: Earlier | None = None
        """Who keeps what was trimmed off the log's beginning, if that is known."""
        self.batches = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._clock = ServerClock()
        self._direct = f"{API}.DIRECT.GET.{self.stream}"
        self._leader = f"STREAM.MSG.GET.{self.stream}"
        self._barrier = f"{connection.namespace}.checks.barrier"
        self._refresh = asyncio.Event()
        self._shared = SharedReads(self._all_last)

    # -- the stream itself --------------------------------------------------------------------------------------------

    async def state(self) -> dict[str, Any]:
        """The stream's state as its leader reports it (``first_seq``, ``last_seq``, ``messages``, …).

        ``first_seq`` is the first sequence from which on nothing is missing. Also takes note of whether its server
        stands alone, of when it was made, and of the server's clock.
        """
        loop = asyncio.get_running_loop()
        sent = loop.time()
        try:
            info = await api(self.connection, f"STREAM.INFO.{self.stream}", patience=self.timeout)
        except Fault as fault:
            raise error_of(fault, f"asking for the state of {self.stream}") from None
        self.alone = "name" not in (info.get("cluster") or {})
        self.created = records.nanoseconds_of(info["created"])
        self._clock.observe(sent, records.nanoseconds_of(info["ts"]), loop.time())
        state: dict[str, Any] = dict(info["state"])
        self.last_known = int(state["last_seq"])
        self.info, self.held = info, holding(info["config"], state)
        state["first_seq"] = max(int(state["first_seq"]), self.held.complete if state["last_seq"] else 0)
        await thaw_if_left(self.connection, info)
        return state

    async def begins(self) -> int:
        """The first revision from which on the past can be read: the log's own, or that of what was kept of it.

        Raises InvalidInputError if what should have been kept is of another log, or not whole.
        """
        await self.state()
        return self.held.complete if self.earlier is None or self.held.complete <= 1 else await self._earlier_begins()

    async def _earlier_begins(self) -> int:
        if self.earlier is None:
            return self.held.complete
        return await self.earlier.begins(self.stream, self.created, self.held.complete - 1)

    def is_same_as(self, other: Log) -> bool:
        """Whether both are the same log, over whatever connections."""
        return (self.stream, self.created) == (other.stream, other.created)

    def proof(self) -> Proof:
        """What a server proves by that it has this very log, whose state must have been asked for."""
        created = self.created

        def is_right(answer: bytes) -> bool | None:
            try:
                info = orjson.loads(answer)
            except orjson.JSONDecodeError:  # the status that nobody answers
                return None
            if "error" in info:
                return False if ServerFault.of(info["error"]).verdict is Verdict.ABSENT else None
            return records.nanoseconds_of(info["created"]) == created

        return Proof(f"{API}.STREAM.INFO.{self.stream}", is_right)

    def now(self) -> int:
        """The server's time in nanoseconds since the epoch, to about half a round trip, whatever our clock says."""
        return self._clock.now(asyncio.get_running_loop().time())

    def now_at_most(self) -> int:
        """A time that the server has surely not passed."""
        return self._clock.latest(asyncio.get_running_loop().time())

    def now_at_least(self) -> int:
        """A time that the server has surely reached: for what must not happen too early."""
        return self._clock.earliest(asyncio.get_running_loop().time())

    async def follow_topology(self, interval: float = 10.0) -> None:
        """Keep current whether the server stands alone, and the clock, until cancelled. Owned by the fabric.

        Looks after every reconnect, and every ``interval`` seconds.
        """

        def changed(state: ConnectionState) -> None:
            if state == "connected":
                self._refresh.set()

        forget = self.connection.on_state(changed)
        try:
            while True:
                try:
                    async with asyncio.timeout(interval):
                        await self._refresh.wait()
                except TimeoutError:
                    pass
                self._refresh.clear()
                try:
                    await self.state()
                except (UnavailableError, AccessDeniedError) as error:
                    logger.debug("%s", error)
        finally:
            forget()

    # -- append -------------------------------------------------------------------------------------------------------

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
        """Store one event; ``headers`` must carry its id. Returns once it is durable.

        ``expected`` is the sequence that the last event of the subject, or of the literal subject ``on``, must have (0:
        none yet). Tries again, with the same id, while the outcome is open, up to the log's timeout. ``repeated`` says
        that an earlier call with this id had an open outcome: what that one stored is no conflict.

        Raises :class:`Conflict` (nothing stored), :class:`UnavailableError` (nothing stored),
        :class:`OutcomeUnknownError` (a try was sent and never answered: it may be stored; trying again with the same id
        is safe), :class:`InvalidInputError` (too large).
        """
        self.check_size(subject, payload, headers)
        if expected is not None:
            headers = {**headers, EXPECTED: str(expected)} | ({EXPECTED_ON: on} if on is not None else {})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        unknown = False
        attempt = 0
        while True:
            pause = backoff(attempt)
            attempt += 1
            try:
                remaining = deadline - loop.time()
                answer = await self.connection.request(
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
        limit = self.connection.max_payload
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
            f"writing {subject!r}: sent, but the server did not confirm it within {self.timeout:g} s; it may or may "
            f"not be stored; trying again with event_id={headers[EVENT_ID]!r} within two minutes cannot store it twice",
            event_id=headers[EVENT_ID],
        )

    async def _stored_after(self, subject: str, sequence: int | None, event_id: str) -> int | None:
        """Where the event ``event_id`` is stored, if it is the subject's first after ``sequence`` (None: its last).

        This is how a write whose first try went unanswered tells its own success from somebody else's: the server
        checks the expectation before it looks for duplicates.
        """
        body = {"last_by_subj": subject} if sequence is None else {"seq": sequence + 1, "next_by_subj": subject}
        record = await self._leader_get(body)
        return record.sequence if record is not None and record.headers.get(EVENT_ID) == event_id else None

    # -- strong reads -------------------------------------------------------------------------------------------------

    async def last(self, subjects: Sequence[str], *, floor: int | None = None) -> list[Record | None]:
        """The last event of each subject, as of an instant not before the call; None where there is none.

        With ``floor``, any replica may answer that proves to have reached that sequence: cheaper in a cluster,
        and possibly behind what others have been told. Subjects are literal. Raises :class:`UnavailableError` when no
        answer is to be had within the log's timeout.
        """
        if not subjects:
            return []
        if self.alone:
            if len(subjects) == 1:
                return [await self._direct_last(subjects[0])]
            if len(subjects) <= _FEW:
                return await self._shared.last(subjects)
        elif len(subjects) <= _FEW and floor is None:
            return list(await asyncio.gather(*(self._leader_get({"last_by_subj": subject}) for subject in subjects)))
        found: dict[str, Record] = {}
        for start in range(0, len(subjects), CHUNK):
            chunk = list(subjects[start : start + CHUNK])
            if floor:
                chunk.append(self._barrier)  # where it exists, an answer without any other match still proves itself
            page = await self._multi_last(chunk, floor=floor)
            found.update((record.subject, record) for record in page or ())
        return [found.get(subject) for subject in subjects]

    async def current(self, filters: Sequence[str]) -> AsyncIterator[Record]:
        """The last event of every subject that a filter matches, each once, deletes included.

        Filters must not overlap. Answers as of an instant not before the call; a subject written meanwhile may come
        with its newer event. In the order of the log, except for thousands of subjects in a cluster.
        """
        page = await self._multi_last(filters)
        if page is not None:
            for record in page:
                yield record
            return
        streaming = self.alone
        seen: dict[str, None] = {}
        async with Reader(
            self.connection, self.stream, filters, last_per_subject=True, patience=self.timeout
        ) as reader:
            async for record in reader.last_of_each():
                if streaming and record.subject not in seen:
                    yield record
                seen[record.subject] = None
        if not streaming:  # the replica that answered may have been behind: it only said which subjects there are
            subjects = list(seen)
            for start in range(0, len(subjects), CHUNK):
                for record in await self._multi_last(subjects[start : start + CHUNK]) or ():
                    yield record

    async def last_of_each(self, filters: Sequence[str]) -> AsyncGenerator[Record, None]:
        """The same, but cheaper for many subjects: one may come several times, and only the last time counts."""
        async with Reader(
            self.connection, self.stream, filters, last_per_subject=True, patience=self.timeout
        ) as reader:
            async for record in reader.last_of_each():
                yield record

    async def read(
        self, filters: Sequence[str], *, start: int = 1, stop: int | None = None, exact: bool = False
    ) -> AsyncGenerator[Record, None]:
        """The events that match, in order, from sequence ``start`` to ``stop`` (default: the last at the call).

        What was trimmed, before or meanwhile, comes from where it is kept, if that is known; otherwise it is left out.
        ``exact``: their headers as they are stored.
        """
        target = int((await self.state())["last_seq"]) if stop is None else stop
        while start <= target:
            until = min(target, self.held.complete - 1)
            if self.earlier is not None and start <= until:
                await self._earlier_begins()
                async with aclosing(self.earlier.read(filters, start, until)) as records:
                    async for record in records:
                        yield record
                start = until + 1
                continue
            kept = self.earlier is not None
            try:
                async with Reader(
                    self.connection, self.stream, filters, start=start, gapless=kept, exact=exact, patience=self.timeout
                ) as reader:
                    async for record in reader.until(target):
                        yield record
                        start = record.sequence + 1
                return
            except ResyncRequired:
                await self.state()
                if start >= self.held.complete:
                    raise

    async def as_of(self, subjects: Sequence[str], sequence: int) -> list[Record] | None:
        """The last event at or before ``sequence`` of every subject (or filter), or None if there are over 1,024.

        ``sequence`` must be one that the log has reached; 0 gives nothing. By the log alone.
        """
        return await self._multi_last(subjects, up_to=sequence) if sequence > 0 else []

    async def before(self, record: Record) -> Record | None:
        """The event of the same subject just before this one; None if there was none, or it is not agentfield's."""
        found = await self.as_of([record.subject], record.sequence - 1)
        if not found and self.earlier is not None and record.sequence <= self.held.complete:
            await self._earlier_begins()
            found = [each async for each in self.earlier.last([record.subject], record.sequence - 1)]
        return found[0] if found and EVENT_HEADER in found[0].headers else None

    async def at(self, sequence: int) -> Record | None:
        """The event with this sequence."""
        record = await self._leader_get({"seq": sequence})
        if record is None and self.earlier is not None and 0 < sequence < (await self._complete()):
            await self._earlier_begins()
            return await self.earlier.at(sequence)
        return record

    async def _complete(self) -> int:
        await self.state()
        return self.held.complete

    async def first_of(self, subject_filter: str) -> Record | None:
        """The first event that is left on any subject that the filter matches, as the leader knows it."""
        return await self._leader_get({"seq": 1, "next_by_subj": subject_filter})

    async def last_of(self, subject_filter: str) -> Record | None:
        """The last event on any subject that the filter matches, as the leader knows it."""
        return await self._leader_get({"last_by_subj": subject_filter})

    async def sequence_at(self, moment: datetime) -> int:
        """The sequence of the first event stored at or after a moment; one past the last if there is none yet."""
        last = int((await self.state())["last_seq"])  # before looking: what comes later must not be passed over
        start = min(max(moment.astimezone(UTC), _EARLIEST), _LATEST)
        record = await self._leader_get({"start_time": start.isoformat().replace("+00:00", "Z"), "next_by_subj": ">"})
        found = record.sequence if record is not None else last + 1
        if self.earlier is not None and 1 < self.held.complete >= found:
            await self._earlier_begins()
            kept = await self.earlier.sequence_at((start - _EARLIEST) // timedelta(microseconds=1) * 1000)
            return found if kept is None else min(found, kept)
        return found

    async def _all_last(self, subjects: Sequence[str]) -> list[Record]:
        return await self._multi_last(subjects) or []

    async def _direct_last(self, subject: str) -> Record | None:
        (answer,) = await self._patiently(f"{self._direct}.{subject}", b"", single=True)
        if answer.status == _NOTHING:
            return None
        if answer.status:
            raise UnavailableError(
                f"reading {subject!r}: the server says {answer.status} {answer.headers.get(DESCRIPTION, '')}"
            )
        return records.of_direct(answer)

    async def _leader_get(self, body: dict[str, Any]) -> Record | None:
        try:
            return records.of_leader((await api(self.connection, self._leader, body, patience=self.timeout))["message"])
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.err_code == NO_MESSAGE:
                return None
            raise error_of(fault, f"reading {self.stream}") from None

    async def barrier(self) -> int:
        """The sequence of an event that was committed after the call began.

        A read that proves to have reached it is linearisable, even if a deposed leader is among the replicas: to commit
        takes a majority. A server that stands alone cannot be deposed, so nothing is written there; the answer is 0.
        """
        if self.alone:
            return 0
        headers = {EVENT_ID: new_id(), EVENT_HEADER: _BARRIER}
        return (await self.append(self._barrier, b"null", headers)).sequence

    async def _multi_last(
        self, filters: Sequence[str], *, up_to: int | None = None, floor: int | None = None
    ) -> list[Record] | None:
        """All last events of the filters in pages, None when there are too many.

        Never behind ``floor``; by default, never behind the leader.
        """
        if floor is None:
            floor = up_to if up_to is not None else (0 if self.alone else int((await self.state())["last_seq"]))
        page = await self._proven_page(filters, up_to, 0, floor)
        if page.status == _TOO_MANY:
            return None
        found = page.records
        while page.pending > 0:
            page = await self._proven_page(filters, page.up_to, found[-1].sequence + 1, page.up_to)
            found.extend(page.records)
        return found

    async def subjects(self, filters: Sequence[str], *, most: int, floor: int) -> list[str] | None:
        """The subjects that the filters hear and that have events, none with one up to ``floor`` left out.

        None if there are more than ``most``. Raises :class:`UnavailableError`.
        """
        page = await self._proven_page(filters, None, 0, floor, batch=most + 1)
        if page.status == _TOO_MANY or page.pending > 0 or len(page.records) > most:
            return None
        return [record.subject for record in page.records]

    async def _proven_page(
        self, filters: Sequence[str], up_to: int | None, start: int, floor: int, *, batch: int = _PAGE
    ) -> _Page:
        """A page from a replica that has reached ``floor``; asks again while others answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        attempt = 0
        while True:
            page = await self._page(filters, up_to, start, batch)
            if page.status == _TOO_MANY or (page.status == _COMPLETE and page.up_to >= floor and page.records):
                return page
            nothing = page.status == _NOTHING and not start  # a later page was promised something
            alone = floor == 0 or self.alone
            if nothing and (alone or await self._nothing_matches(filters, floor, up_to)):
                return page
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise UnavailableError(
                    f"reading {self.stream}: no replica caught up to {floor} within {self.timeout:g} s "
                    f"(the last one said {page.status})"
                )
            await asyncio.sleep(pause)

    async def _nothing_matches(self, filters: Sequence[str], floor: int, up_to: int | None) -> bool:
        """Whether "no results" is the truth, and not a replica that has not reached ``floor`` yet: ask the leader."""
        firsts = await asyncio.gather(*(self.first_of(subject) for subject in filters))
        return all(record is None or (up_to is not None and record.sequence > up_to) for record in firsts)

    async def _page(self, filters: Sequence[str], up_to: int | None, start: int, batch: int) -> _Page:
        body: dict[str, Any] = {"multi_last": list(filters), "batch": batch, "max_bytes": _PAGE_BYTES}
        if up_to is not None:
            body["up_to_seq"] = up_to
        if start:
            body["seq"] = start
        answer = await self._patiently(self._direct, orjson.dumps(body), single=False)
        end = answer.pop()
        if end.status == _NOTHING and end.headers.get(DESCRIPTION) != _NO_RESULTS:
            raise UnavailableError(f"reading {self.stream}: the server says {end.headers.get(DESCRIPTION)!r}")
        return _Page(
            [records.of_direct(message) for message in answer],
            int(end.headers.get("Nats-UpTo-Sequence", 0)),
            int(end.headers.get("Nats-Num-Pending", 0)),
            end.status,
        )

    async def _patiently(self, subject: str, payload: bytes, *, single: bool) -> list[Message]:
        """Ask until there is an answer or the log's timeout is over; reads may be repeated freely."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        attempt = 0
        while True:
            limit = min(ATTEMPT, max(0.001, deadline - loop.time()))
            fault: Fault | UnavailableError
            try:
                if single:
                    return [await self.connection.request(subject, payload, timeout=limit)]
                return await self.connection.request_many(subject, payload, timeout=limit, last=_is_end)
            except (NoAnswerFault, NoRespondersFault) as caught:
                fault = caught
            except UnavailableError as caught:
                fault = caught
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise error_of(fault, f"reading {self.stream} within {self.timeout:g} s")
            await asyncio.sleep(pause)


def _is_end(message: Message) -> bool:
    """The end of a multi-get's answers: any status message (204 done, 404 nothing, 413 too many)."""
    return message.status != 0
