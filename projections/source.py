"""Where events come from: the one door between projections and the inside of agentfield.

Owns: a connection to one namespace, reading its log in batches, and the lease that makes one of several runners the
active one. Everything that projections know of agentfield beyond its public names is imported here. Invariant: every
matching event once, in order; what a batch says about the log up to its last sequence is complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

from agentfield.codec import Record, reference_of
from agentfield.errors import DecodeError, HistoryTruncatedError, InvalidInputError
from agentfield.event import Event
from agentfield.execution import new_id
from agentfield.fabric.appending import Conflict
from agentfield.fabric.consumers.consumer import PinnedConsumer
from agentfield.fabric.consumers.consuming import ConsumerSpec
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import PATIENCE, api
from agentfield.fabric.reader import Reader
from agentfield.header import EVENT_HEADER, EVENT_ID
from agentfield.memory.connecting import open_fabric
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern, cover
from agentfield.scope import RESOLUTION, check_scope_kind
from agentfield.settings import Settings
from projections.projection import Selection

logger = logging.getLogger("agentfield.projections")

_LEASE_EVENT = '{"v":1,"type":"set"}'
_MOST_BYTES = 8 * 1024 * 1024
"""Bytes of values after which a batch ends, so that large ones are not held by the hundred."""
_LOOK = 0.1
"""Seconds between looks at whether the lease is ours."""


@dataclass(slots=True)
class Batch:
    """Consecutive matching events, and what could not be decoded among them."""

    last: int
    """Everything up to this sequence is in it, or was before it."""
    events: list[Event] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)


class Batches(Protocol):
    """A walk over the log in batches, as an async context manager."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def batch(self, most: int) -> Batch:
        """What has come, at most so many events unless the walk has its own measure; waits until there is something."""

    def until(self, target: int, most: Callable[[], int]) -> AsyncIterator[Batch]:
        """Batches up to sequence ``target``, which the log has reached; then the end. ``most`` is asked before each."""


EVERY_MESSAGE: Final = Selection((), ())
"""What no pattern says: every message of the log, events of keys or not."""


class Source:
    """The log of one namespace, for projections. Make one with :meth:`open`."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    @classmethod
    @asynccontextmanager
    async def open(
        cls, nats_url: str | None = None, *, namespace: str | None = None, timeout: float = PATIENCE
    ) -> AsyncIterator[Source]:
        """Connects as ``agentfield.connect`` does, and raises what that raises."""
        fabric = await open_fabric(
            nats_url,
            namespace,
            name="agentfield-projections",
            settings=Settings.load(),
            connect_timeout=timeout,
            timeout=timeout,
        )
        try:
            yield cls(fabric)
        finally:
            await fabric.aclose()

    @property
    def namespace(self) -> str:
        """The namespace whose log it is."""
        return self.fabric.subjects.namespace

    async def log_id(self) -> str:
        """What tells this log from any other: when the server made it."""
        try:
            info = await api(self.fabric.connection, f"STREAM.INFO.{self.fabric.log.stream}")
        except Fault as fault:
            raise error_of(fault, "asking which log this is") from None
        return f"{self.namespace}@{info['created']}"

    async def last(self) -> int:
        """The log's last sequence."""
        return int((await self.fabric.log.state())["last_seq"])

    async def trimmed(self, start: int) -> bool:
        """Whether something from this sequence on has been trimmed off the log."""
        await self.fabric.log.state()
        return start < self.fabric.log.held.complete

    async def lag(self, selection: Selection, checkpoint: int) -> int:
        """How many events of the selection come after the checkpoint."""
        filters = filters_of(self, selection)
        async with Reader(
            self.fabric.connection,
            self.fabric.log.stream,
            filters,
            start=checkpoint + 1,
            patience=self.fabric.log.timeout,
        ) as reader:
            return reader.pending

    def feed(self, selection: Selection, start: int, *, previous: bool = False) -> Feed:
        """The events of a selection from sequence ``start`` on. Use as an async context manager."""
        return Feed(self, selection, start, previous=previous)

    def lease(self, name: str) -> Lease:
        """The right to be the active one of those who ask for the same name. Use as an async context manager."""
        return Lease(self.fabric, name)


def check_selection(selection: Selection) -> Selection:
    """The selection, if its patterns are legal. Raises InvalidInputError otherwise."""
    for text in selection.patterns:
        Pattern.parse(text)
    return selection


def filters_of(source: Source, selection: Selection) -> tuple[str, ...]:
    """The subjects that hear a selection; none means all there are."""
    if selection == EVERY_MESSAGE:
        return ()
    patterns = [Pattern.parse(text) for text in selection.patterns]
    scopes = [(check_scope_kind(kind), id) for kind, id in selection.scopes]
    subjects = source.fabric.subjects
    if {(kind, None) for kind in RESOLUTION} <= set(scopes):
        # One filter where four would say the same: the server delivers three times as fast through one.
        return tuple(f"{subjects.namespace}.memory.*.*.{tail}" for tail in cover(patterns))
    return subjects.filters(patterns, scopes)


class Feed:
    """A walk over the events of a selection, in batches.

    Raises :class:`ResyncRequired` where the log was trimmed under it: begin another one, which takes what is no longer
    there from the archive.
    """

    def __init__(self, source: Source, selection: Selection, start: int, *, previous: bool) -> None:
        fabric = source.fabric
        filters = filters_of(source, selection)
        self._fabric = fabric
        self._start = start
        self._patterns = [Pattern.parse(text) for text in selection.patterns]
        self._everything = "*" in selection.patterns
        self._resolver = Resolver(fabric)
        self._waiting: list[Record] = []
        self._table = PreviousTable(fabric.log, filters) if previous else None
        self._filters = filters
        self._earlier: AsyncGenerator[Record, None] | None = None
        self._reader = self._read_from(start)

    def _read_from(self, start: int) -> Reader:
        log = self._fabric.log
        return Reader(log.connection, log.stream, self._filters, start=start, gapless=True, patience=log.timeout)

    async def __aenter__(self) -> Self:
        """Begin. Raises HistoryTruncatedError if what it should begin with is gone."""
        log = self._fabric.log
        await log.state()
        complete = log.held.complete
        if self._start < complete:
            first = await log.begins()
            if self._start < first and first > 1:
                raise HistoryTruncatedError(requested=self._start, first_available=first)
            if log.earlier is not None and first < complete:
                self._earlier = log.earlier.read(self._filters, self._start, complete - 1)
            self._reader = self._read_from(complete)
        if self._table is not None:
            await self._table.fill(self._start - 1)
        await self._reader.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._earlier is not None:
            await self._earlier.aclose()
        await self._reader.aclose()

    async def batch(self, most: int) -> Batch:
        """What has arrived, at most so many events; waits until there is something."""
        if not self._waiting:
            self._waiting = await self._some(most)
        count = min(most, _within(self._waiting, _MOST_BYTES))
        records, self._waiting = self._waiting[:count], self._waiting[count:]
        return await self._decoded(records)

    async def until(self, target: int, most: Callable[[], int]) -> AsyncIterator[Batch]:
        """Batches of at most so many events, up to sequence ``target``, which the log has reached; then the end."""
        records: list[Record] = []
        weight, limit = 0, most()
        async for record in self._until(target):
            records.append(record)
            weight += _weight(record)
            if len(records) >= limit or weight >= _MOST_BYTES:
                yield await self._decoded(records)
                records, weight, limit = [], 0, most()
        if records:
            yield await self._decoded(records)

    async def _some(self, most: int) -> list[Record]:
        """The next records, at least one, from wherever they are."""
        records = [] if self._earlier is None else [each async for each in _first(self._earlier, most)]
        if not records:
            self._earlier = None
            records = await self._reader.some(most)
        return records

    async def _until(self, target: int) -> AsyncIterator[Record]:
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            async with aclosing(earlier):
                async for record in earlier:
                    if record.sequence > target:
                        return
                    yield record
        async for record in self._reader.until(target):
            yield record

    async def _decoded(self, records: list[Record]) -> Batch:
        batch = Batch(records[-1].sequence)
        for record in records:
            try:
                if not self._everything and not self._matches(record):
                    continue
                batch.events.append(await self._event(record))
            except DecodeError as error:
                logger.warning("passed over: %s", error)
                batch.skipped.append(record.sequence)
        return batch

    def _matches(self, record: Record) -> bool:
        try:
            _, key = self._fabric.subjects.parse(record.subject)
        except InvalidInputError:
            return True  # decoding says what is wrong with it
        return any(pattern.matches(key) for pattern in self._patterns)

    async def _event(self, record: Record) -> Event:
        before = None if self._table is None else await self._table.of(record)
        event = await self._resolver.event(record, before)
        if self._table is not None:
            self._table.advance(record)
        return event


async def _first(records: AsyncIterator[Record], most: int) -> AsyncIterator[Record]:
    """The first of these, at most so many; the others are still to come."""
    while most > 0 and (record := await anext(records, None)) is not None:
        most -= 1
        yield record


def _within(records: Sequence[Record], most: int) -> int:
    """How many of the records come before their values reach so many bytes; at least one."""
    weight = 0
    for number, record in enumerate(records, 1):
        weight += _weight(record)
        if weight >= most:
            return number
    return len(records)


def _weight(record: Record) -> int:
    """The bytes of a record's value, wherever it lies."""
    try:
        reference = reference_of(record)
    except DecodeError:
        reference = None
    return len(record.payload) if reference is None else reference.size


class Lease:
    """The right to be the active one; a standby gets it within seconds when the active one dies, at once if it leaves.

    It is a durable consumer with a pin, on one event that nobody ever acknowledges: holding it writes nothing.
    """

    def __init__(self, fabric: Fabric, name: str) -> None:
        self._fabric = fabric
        self._name = f"projection-{name}"
        self._subject = f"{fabric.subjects.namespace}.checks.projections.{name}"
        self._consumer = PinnedConsumer(
            fabric.log,
            ConsumerSpec(
                name=self._name,
                filters=(self._subject,),
                start="all",
                description="which instance of a projection's runner is active",
            ),
        )
        self._holder: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            headers = {EVENT_ID: new_id(), EVENT_HEADER: _LEASE_EVENT}
            await self._fabric.log.append(self._subject, b"null", headers, expected=0)
        except Conflict:
            pass  # it has been there since the first time
        await self._consumer.ensure()
        self._holder = asyncio.create_task(self._consumer.run(), name=f"lease {self._subject}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holder is not None:
            self._holder.cancel()
            await asyncio.gather(self._holder, return_exceptions=True)
        await self._consumer.leave()

    @property
    def held(self) -> bool:
        """Whether it is surely ours at this moment, by this process's own clock."""
        return self._consumer.active

    async def wait(self) -> None:
        """Return once it is ours."""
        while not self._consumer.active:  # noqa: ASYNC110 - it turns true by the passing of time, too
            await asyncio.sleep(_LOOK)

    async def taken(self) -> bool:
        """Whether an instance has it, as the server sees it: one that died has it for some seconds more."""
        info = await self._ask("INFO")
        return any(group.get("pinned_client_id") for group in (info or {}).get("priority_groups") or ())

    async def forget(self) -> None:
        """Remove what the server keeps for it: for a projection that is removed."""
        await self._ask("DELETE")

    async def _ask(self, what: str) -> dict[str, Any] | None:
        try:
            return await api(self._fabric.connection, f"CONSUMER.{what}.{self._fabric.log.stream}.{self._name}")
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT:
                return None
            raise error_of(fault, f"looking at the consumer {self._name}") from None
