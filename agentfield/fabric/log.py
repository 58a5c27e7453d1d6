"""The log: appending events to it and reading them back from where they cannot be stale.

Owns: which way each read goes, from a server that stands alone by direct get, in a cluster from the leader; and
reading on from where it is kept what was trimmed. Must not know: keys, scopes, values; how the server is asked, and
what becomes of a try to append. Invariants: a read never answers behind an acknowledged append, and never says "absent"
because something was out of order; what was trimmed and is kept is read as if it were still there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from agentfield.codec import Record
from agentfield.errors import ResyncRequired
from agentfield.execution import new_id
from agentfield.fabric.appending import Ack, Appending
from agentfield.fabric.asking import Asking
from agentfield.fabric.backlog import MOST_FILTERS, backlog
from agentfield.fabric.earlier import Earlier
from agentfield.fabric.jetstream import PATIENCE
from agentfield.fabric.reader import Reader
from agentfield.fabric.sharing import SharedReads
from agentfield.fabric.stream import Stream
from agentfield.fabric.topology import StreamSpec, Topology
from agentfield.fabric.wire.connection import Connection
from agentfield.header import EVENT_HEADER, EVENT_ID

BATCHES_AT_ONCE = 8
"""Atomic batches of this process on their way at once; more wait their turn. A stream takes 50 from all clients
together (error 10210), and one refused in its middle costs as much as one that is stored."""
CHUNK = 1000
"""Literal subjects that one multi-get is asked for."""
_FEW = 8
"""Up to this many subjects are cheaper as single leader gets in flight together than as a proven multi-get."""
_APART = 100
"""Events of the log from which on it is cheaper to read what several filters let through by a reader for each."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""The server counts nanoseconds in 64 bits: times far beyond what a log can hold would wrap around."""

_BARRIER = '{"v":1,"type":"set"}'


class Log(Stream):
    """The log stream of one namespace, over one connection; or, ``of`` the table, another that only grows."""

    def __init__(
        self, connection: Connection, topology: Topology, *, timeout: float = PATIENCE, of: StreamSpec | None = None
    ) -> None:
        super().__init__(connection, (of or topology.log).name, timeout=timeout)
        self.earlier: Earlier | None = None
        """Who keeps what was trimmed off the log's beginning, if that is known."""
        self.batches = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._barrier = f"{connection.namespace}.checks.barrier"
        self._asking = Asking(self)
        self._appending = Appending(self, self._asking)
        self._shared = SharedReads(self._all_last)

    # -- where it begins ----------------------------------------------------------------------------------------------

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
        return await self._appending.append(subject, payload, headers, expected=expected, on=on, repeated=repeated)

    def check_size(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Raises InvalidInputError if an event is larger than the server takes in one message."""
        self._appending.check_size(subject, payload, headers)

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
                return [await self._asking.direct_last(subjects[0])]
            if len(subjects) <= _FEW:
                return await self._shared.last(subjects)
        elif len(subjects) <= _FEW and floor is None:
            return list(await asyncio.gather(*(self.last_of(subject) for subject in subjects)))
        found: dict[str, Record] = {}
        for start in range(0, len(subjects), CHUNK):
            chunk = list(subjects[start : start + CHUNK])
            if floor:
                chunk.append(self._barrier)  # where it exists, an answer without any other match still proves itself
            page = await self._asking.multi_last(chunk, floor=floor)
            found.update((record.subject, record) for record in page or ())
        return [found.get(subject) for subject in subjects]

    async def current(self, filters: Sequence[str]) -> AsyncIterator[Record]:
        """The last event of every subject that a filter matches, each once, deletes included.

        Filters must not overlap. Answers as of an instant not before the call; a subject written meanwhile may come
        with its newer event. In the order of the log, except for thousands of subjects in a cluster.
        """
        page = await self._asking.multi_last(filters)
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
                for record in await self._asking.multi_last(subjects[start : start + CHUNK]) or ():
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
            try:
                async with aclosing(self._read(filters, start, target, exact=exact)) as records:
                    async for record in records:
                        yield record
                        start = record.sequence + 1
                return
            except ResyncRequired:
                await self.state()
                if start >= self.held.complete:
                    raise

    async def _read(
        self, filters: Sequence[str], start: int, stop: int, *, exact: bool
    ) -> AsyncGenerator[Record, None]:
        """The same, of what the log holds. Raises ResyncRequired if it loses some that is kept elsewhere meanwhile."""
        kept = self.earlier is not None
        if 1 < len(filters) <= MOST_FILTERS and stop - start >= _APART:
            async with aclosing(backlog(self, filters, start, stop, gapless=kept, exact=exact)) as blocks:
                async for block in blocks:
                    for record in block:
                        yield record
            return
        async with Reader(
            self.connection, self.stream, filters, start=start, gapless=kept, exact=exact, patience=self.timeout
        ) as reader:
            async for record in reader.until(stop):
                yield record

    async def as_of(self, subjects: Sequence[str], sequence: int) -> list[Record] | None:
        """The last event at or before ``sequence`` of every subject (or filter), or None if there are over 1,024.

        ``sequence`` must be one that the log has reached; 0 gives nothing. By the log alone.
        """
        return await self._asking.multi_last(subjects, up_to=sequence) if sequence > 0 else []

    async def before(self, record: Record) -> Record | None:
        """The event of the same subject just before this one; None if there was none, or it is not agentfield's."""
        found = await self.as_of([record.subject], record.sequence - 1)
        if not found and self.earlier is not None and record.sequence <= self.held.complete:
            await self._earlier_begins()
            found = [each async for each in self.earlier.last([record.subject], record.sequence - 1)]
        return found[0] if found and EVENT_HEADER in found[0].headers else None

    async def at(self, sequence: int) -> Record | None:
        """The event with this sequence."""
        record = await self._asking.leader_get({"seq": sequence})
        if record is None and self.earlier is not None and 0 < sequence < (await self._complete()):
            await self._earlier_begins()
            return await self.earlier.at(sequence)
        return record

    async def _complete(self) -> int:
        await self.state()
        return self.held.complete

    async def first_of(self, subject_filter: str) -> Record | None:
        """The first event that is left on any subject that the filter matches, as the leader knows it."""
        return await self._asking.first_of(subject_filter)

    async def subjects(self, filters: Sequence[str], *, most: int, floor: int) -> list[str] | None:
        """The subjects that the filters hear and that have events, none with one up to ``floor`` left out.

        None if there are more than ``most``. Raises :class:`UnavailableError`.
        """
        return await self._asking.subjects(filters, most=most, floor=floor)

    async def last_of(self, subject_filter: str) -> Record | None:
        """The last event on any subject that the filter matches, as the leader knows it."""
        return await self._asking.leader_get({"last_by_subj": subject_filter})

    async def sequence_at(self, moment: datetime) -> int:
        """The sequence of the first event stored at or after a moment; one past the last if there is none yet."""
        last = int((await self.state())["last_seq"])  # before looking: what comes later must not be passed over
        start = min(max(moment.astimezone(UTC), _EARLIEST), _LATEST)
        at = start.isoformat().replace("+00:00", "Z")
        record = await self._asking.leader_get({"start_time": at, "next_by_subj": ">"})
        found = record.sequence if record is not None else last + 1
        if self.earlier is not None and 1 < self.held.complete >= found:
            await self._earlier_begins()
            kept = await self.earlier.sequence_at((start - _EARLIEST) // timedelta(microseconds=1) * 1000)
            return found if kept is None else min(found, kept)
        return found

    async def _all_last(self, subjects: Sequence[str]) -> list[Record]:
        return await self._asking.multi_last(subjects) or []

    async def barrier(self) -> int:
        """The sequence of an event that was committed after the call began.

        A read that proves to have reached it is linearisable, even if a deposed leader is among the replicas: to commit
        takes a majority. A server that stands alone cannot be deposed, so nothing is written there; the answer is 0.
        """
        if self.alone:
            return 0
        headers = {EVENT_ID: new_id(), EVENT_HEADER: _BARRIER}
        return (await self.append(self._barrier, b"null", headers)).sequence
