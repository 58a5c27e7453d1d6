"""Transactions: several keys, several scopes, all or nothing.

Owns: what a transaction has read, what it means to write, and turning both into one atomic batch in which every read is
re-checked by the server. Must not know: the batch protocol. Invariants: nothing is written before the commit; the
commit stores every write or none; it stores them only if every key read still is what was read, absence included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self

from agentfield.codec import Record
from agentfield.effects import Effects, ids_in_batch
from agentfield.errors import ConflictError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.event import Writer
from agentfield.execution import Seen
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import MAX_BATCH, Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff
from agentfield.header import EVENT_ID, OPERATION
from agentfield.memory.addressing import Place, read_scopes, write_scope
from agentfield.memory.encrypting import known
from agentfield.memory.handled import Marker
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.preparing import Write, prepare
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import is_live
from agentfield.memory.writing import store_together
from agentfield.schema import Schemas, Stamp
from agentfield.scope import Scope

_TRIES = 10
"""How often a commit that meets undecided writes is tried, for a second or two; they have mostly won by then."""


class _Seen(NamedTuple):
    scope: Scope
    key: str
    record: Record | None
    live: bool
    """Whether there was a value when it was first read."""

    @property
    def revision(self) -> int:
        return 0 if self.record is None else self.record.sequence


class Noted:
    """What ``tx.set`` and ``tx.delete`` give: nothing, and nothing to wait for."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker refuses the await by itself

        def __await__(self) -> NoReturn:
            """Say that there is nothing to wait for."""
            raise InvalidInputError(
                "tx.set() and tx.delete() are not awaited: they only take note, and the end of the `async with` block "
                "stores it all; leave the await out"
            )


_NOTED: Final = Noted()


class Transaction:
    """Reads and writes that take effect together. Use as ``async with memory.transaction() as tx``.

    ``tx.get`` reads at once, and sees the transaction's own writes; ``tx.set`` and ``tx.delete`` only take note.
    Leaving the block commits; leaving it by an exception writes nothing. If a key that was read has changed by then,
    the commit raises :class:`ConflictError` and nothing is stored: begin again. After the block, ``tx.revision`` is the
    revision of the last write.

    In a handler, ``memory.transaction(once=True)`` also marks the event as handled. If it had been before, ``handled``
    is True from the beginning, and leaving the block stores nothing.

    If nobody knows whether the commit was stored, it raises :class:`OutcomeUnknownError`; its ``event_id``, given to
    ``memory.transaction(event_id=…)``, repeats the block without storing it twice.
    """

    def __init__(
        self,
        fabric: Callable[[], Awaitable[Fabric]],
        lifetimes: Lifetimes,
        schemas: Schemas,
        place: Place,
        writer: Writer,
        seen: Seen,
        effects: Effects | None = None,
        *,
        once: bool = False,
        event_id: str | None = None,
    ) -> None:
        self._source = fabric
        self._lifetimes = lifetimes
        self._schemas = schemas
        self._place = place
        self._writer = writer
        self._reader = seen
        self._effects = effects
        self._once = once
        self._marker: Marker | None = None
        self._event_id = event_id
        self._batch = ""
        self._fabric: Fabric | None = None
        self._seen: dict[str, _Seen] = {}
        self._writes: dict[str, Write] = {}
        self._over = False
        self.revision: int | None = None
        """The revision of the last write, once committed; None before, and if nothing was written."""
        self.handled = False
        """With ``once``: whether the handler had handled its event before, so that this stores nothing."""

    async def __aenter__(self) -> Self:
        """Connect if need be; begins without asking the server anything, but with ``once`` for the marker."""
        if self._fabric is not None:
            raise InvalidInputError("a transaction can be entered once: make a new one with memory.transaction()")
        if self._once and self._effects is not None:
            await self._begin(self._effects)
        else:
            self._fabric = await self._source()
        return self

    async def _begin(self, effects: Effects) -> None:
        """Look whether the event has been handled. After a failure the transaction has not begun."""
        if effects.marked:
            raise InvalidInputError(
                "a handler's run has one transaction(once=True), since it marks the event as handled: put all that is "
                "to be stored once into that one"
            )
        effects.marked = True
        try:
            fabric = await self._source()
            self._marker = Marker(fabric, effects)
            self.handled = await self._marker.look()
        except BaseException:
            effects.marked = False
            raise
        self._fabric = fabric

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or, after an exception, write nothing."""
        done = False
        try:
            if kind is None and not self._over and not self.handled:
                await self._commit()
            done = kind is None
        except ConflictError:
            if self._effects is not None:
                self._effects.refused(self._batch)
            raise
        finally:
            self._over = True
            if self._marker is not None and self._effects is not None and not done:
                self._effects.marked = False  # nothing is marked: the handler may try again

    async def get(
        self,
        key: str,
        default: Any = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: Any = None,
    ) -> Any:
        """The value of a key as ``Memory.get`` finds it, and from now on part of what the commit re-checks."""
        fabric = self._open()
        resolver = Resolver(fabric, self._schemas)
        for where in read_scopes(self._place, scope, scope_id):
            subject = fabric.subjects.memory(where, key)
            write = self._writes.get(subject)
            if write is not None:
                if write.headers.get(OPERATION):
                    continue
                return await resolver.value(Record(subject, 0, 0, write.headers, write.payload), as_type)
            seen = self._seen.get(subject)
            if seen is None:
                (last,) = await fabric.log.last([subject])
                record = await known(fabric, last)
                live = record is not None and is_live(record, fabric.log.now())
                # Of several tasks that read it at once, the first one's look is the one that counts for all.
                seen = self._seen.setdefault(subject, _Seen(where, key, record, live))
                self._reader.saw(seen.revision)
            if seen.record is not None and is_live(seen.record, fabric.log.now()):
                return await resolver.value(seen.record, as_type)
        return default

    async def exists(self, key: str, scope: str | None = None, scope_id: str | None = None) -> bool:
        """Whether a key has a value; re-checked like ``get``."""
        absent = object()
        return await self.get(key, absent, scope, scope_id) is not absent

    def set(
        self, key: str, value: Any, scope: str | None = None, scope_id: str | None = None, *, ttl: float | None = None
    ) -> Noted:
        """Write a value at the commit. Validated here: :class:`InvalidInputError`."""
        encoded = self._schemas.encode(key, value)
        self._note(key, "set", encoded.payload, encoded.stamp, scope, scope_id, ttl)
        return _NOTED

    def delete(self, key: str, scope: str | None = None, scope_id: str | None = None) -> Noted:
        """Delete a key at the commit, whether it has a value or not."""
        self._note(key, "delete", b"", None, scope, scope_id, None)
        return _NOTED

    def _note(
        self,
        key: str,
        operation: Any,
        payload: bytes,
        stamp: Stamp | None,
        scope: str | None,
        scope_id: str | None,
        ttl: float | None,
    ) -> None:
        fabric = self._open()
        where = write_scope(self._place, scope, scope_id)
        write = prepare(fabric, where, key, operation, payload, self._writer, ttl=ttl, stamp=stamp)
        if write.subject not in self._writes and len(self._writes) >= MAX_BATCH:
            raise InvalidInputError(
                f"a transaction holds at most {MAX_BATCH} writes and checks, and this would be one more: split it"
            )
        self._writes[write.subject] = write

    def _open(self) -> Fabric:
        if self._fabric is None or self._over:
            raise InvalidInputError("a transaction works inside its `async with` block, and only there")
        return self._fabric

    async def _commit(self) -> None:
        fabric = self._open()
        writes = self._recognisable()
        expectations = [Expectation(subject, seen.revision) for subject, seen in self._seen.items()]
        if not writes and self._marker is None:
            await self._raise_if_changed()
            return
        self._raise_if_expired(fabric)
        for attempt in range(_TRIES):
            marks = [] if self._marker is None else [self._marker.write(self._writer)]
            marked = [] if self._marker is None else [self._marker.expectation()]
            try:
                revision = await store_together(
                    fabric,
                    self._lifetimes,
                    [*marks, *writes],
                    [*marked, *expectations],
                    repeated=self._event_id is not None,
                )
            except OutcomeUnknownError as error:
                if self._marker is not None:
                    raise
                raise OutcomeUnknownError(
                    f"{error}; the same block in memory.transaction(event_id={self._batch!r}) within two minutes "
                    "cannot store it twice",
                    event_id=self._batch,
                ) from None
            except Conflict:
                if self._marker is not None and await self._marker.look():
                    self.handled = True  # another instance was faster
                    return
                await self._raise_if_changed()
            else:
                self.revision = revision if writes else None
                self._reader.saw(revision)
                return
            # Nothing has changed: a write of one of the keys, or another's check of it, was not yet decided.
            await asyncio.sleep(backoff(attempt))
        for seen in self._seen.values():
            raise ConflictError(seen.key, expected=seen.revision, actual=None)
        raise UnavailableError("the transaction met undecided writes for too long; nothing was written")

    def _recognisable(self) -> list[Write]:
        """The writes, under ids that are the same when the block is run again to be repeated.

        In a handler, they are so by themselves whenever it writes the same again.
        """
        writes = list(self._writes.values())
        if not writes:
            return writes
        places = [write.subject for write in writes]
        if self._event_id is not None:
            self._batch = self._event_id
        elif self._effects is not None:
            contents = [(write.headers.get(OPERATION, "SET"), write.payload, repr(write.ttl)) for write in writes]
            self._batch, _ = self._effects.of_batch(list(zip(places, contents, strict=True)), conditional=True)
        else:
            self._batch = writes[-1].headers[EVENT_ID]
        ids = ids_in_batch(self._batch, places)
        return [write._replace(headers={**write.headers, EVENT_ID: id}) for write, id in zip(writes, ids, strict=True)]

    async def _raise_if_changed(self) -> None:
        """Compare everything read with the present, in one look; name the first key that differs."""
        fabric = self._open()
        subjects = list(self._seen)
        if not subjects:
            return
        for seen, record in zip(self._seen.values(), await fabric.log.last(subjects), strict=True):
            actual = 0 if record is None else record.sequence
            if actual != seen.revision:
                raise ConflictError(seen.key, expected=seen.revision, actual=actual)
        self._raise_if_expired(fabric)

    def _raise_if_expired(self, fabric: Fabric) -> None:
        """A value that has run out since it was read is absent now, though nothing has been written."""
        now = fabric.log.now()
        for seen in self._seen.values():
            if seen.live and seen.record is not None and not is_live(seen.record, now):
                raise ConflictError.of_expired(seen.key, seen.revision)
