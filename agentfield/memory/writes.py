"""Writing: set, create, delete and their kin, transactions, locks.

Whatever is refused is refused before anything is written. The acknowledgement of the log is the durability point.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from agentfield.effects import ids_in_batch
from agentfield.errors import ConflictError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.execution import new_id
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import MAX_BATCH, Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import write_scope
from agentfield.memory.encrypting import all_known
from agentfield.memory.lifetimes import clearing
from agentfield.memory.lock import Lock
from agentfield.memory.offline import OfflineBuffer
from agentfield.memory.preparing import Write, check_event_id, check_revision, check_write, prepare
from agentfield.memory.state import holds_something, is_live
from agentfield.memory.storing import is_event, last_record, place_of
from agentfield.memory.transaction import Transaction
from agentfield.memory.updates import Updates
from agentfield.memory.writing import check_same, store_together

_DELETE_TRIES = 10
_FIRST_PAUSE = 0.002


class Writes(Updates):
    """The writing operations."""

    async def set(
        self,
        key: str,
        value: Any,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        ttl: float | None = None,
        if_revision: int | None = None,
        fence: Lock | None = None,
        event_id: str | None = None,
    ) -> int:
        """Store a value under a key, durably, and return its revision (the sequence of the event in the log).

        ``value`` is anything that JSON can hold, a Pydantic model, a dataclass or a datetime. With ``ttl`` (seconds,
        above 0) the entry expires. With ``if_revision`` the write happens only if the key's revision is still that one
        (0: the key has never been written); otherwise :class:`ConflictError`, and nothing is stored. With ``fence`` (a
        held lock of the same namespace) it happens only if the lock is still ours, by the server's word; otherwise
        :class:`LockLostError`. ``event_id`` repeats a write whose outcome was unknown, without storing it twice: if the
        first one was stored, it stands, whatever value this one has, and its revision is returned; the id of a write to
        another key is an :class:`InvalidInputError`. In a handler, a write is recognised by itself when its event comes
        again.
        """
        check_revision(if_revision)
        check_write(key, ttl, event_id)
        if fence is not None and not isinstance(fence, Lock):
            raise InvalidInputError(
                f"fence={fence!r} is no lock: hold one with `async with memory.lock(…) as lock` and give fence=lock"
            )
        target = write_scope(self._place(), scope, scope_id)
        encoded = self.schemas.encode(key, value)
        conditional = if_revision is not None or fence is not None
        id = event_id or self._write_id(target, key, "set", encoded.payload, ttl, conditional=conditional)
        fabric = await self._fabric()
        write = prepare(
            fabric, target, key, "set", encoded.payload, self._writer(), ttl=ttl, event_id=id, stamp=encoded.stamp
        )
        self._restorable(fabric, write)
        try:
            if fence is not None:
                return await self._store_fenced(fabric, write, if_revision, fence, repeated=event_id is not None)
            # The server looks at the condition before it looks for a repetition.
            repeated = event_id is not None or (id is not None and if_revision is not None)
            return await self._store(fabric, write, if_revision, repeated=repeated)
        except ConflictError:
            self._refused(id)
            raise

    async def create(
        self, key: str, value: Any, scope: str | None = None, scope_id: str | None = None, *, ttl: float | None = None
    ) -> int:
        """Store a value under a key that has none in that scope, as ``set`` does; ConflictError if it has one."""
        check_write(key, ttl)
        target = write_scope(self._place(), scope, scope_id)
        encoded = self.schemas.encode(key, value)
        id = self._write_id(target, key, "create", encoded.payload, ttl, conditional=True)
        fabric = await self._fabric()
        write = prepare(
            fabric, target, key, "set", encoded.payload, self._writer(), ttl=ttl, event_id=id, stamp=encoded.stamp
        )
        self._restorable(fabric, write)
        while True:
            record = await last_record(fabric, target, key)
            if record is not None and is_live(record, fabric.log.now()):
                made = await self._made_before(fabric, write, record)
                if made is not None:
                    return made
                self._refused(id)
                raise ConflictError(
                    key,
                    expected=0,
                    actual=record.sequence,
                    message=f"{key!r} has a value already, of revision {record.sequence}; nothing was written: "
                    "set() replaces a value, update() makes a new one of it",
                )
            try:
                return await self._store(fabric, write, record.sequence if record else 0)
            except ConflictError:
                continue  # somebody wrote in between: the next look says whether the key is present now

    async def delete(
        self, key: str, scope: str | None = None, scope_id: str | None = None, *, if_revision: int | None = None
    ) -> bool:
        """Take a key's value away in one scope (chosen as for a write) and say whether there was one.

        The past keeps it. With ``if_revision``, :class:`ConflictError` unless the key's revision is that one; nothing
        is stored then. Deleting what is absent writes nothing.
        """
        check_revision(if_revision)
        check_write(key)
        target = write_scope(self._place(), scope, scope_id)
        id = self._write_id(target, key, "delete", conditional=True)
        fabric = await self._fabric()
        write = prepare(fabric, target, key, "delete", b"", self._writer(), event_id=id)
        self._restorable(fabric, write)
        for _ in range(_DELETE_TRIES):
            record = await last_record(fabric, target, key)
            if is_event(record, id):
                return True
            if if_revision is not None and if_revision != (record.sequence if record else 0):
                if record is not None and await self._made_before(fabric, write, record) is not None:
                    return True
                self._refused(id)
                raise ConflictError(key, expected=if_revision, actual=record.sequence if record else 0)
            if record is None or not holds_something(record, fabric.log.now()):
                return False
            try:
                await self._store(fabric, write, record.sequence)
            except ConflictError:
                if if_revision is not None:
                    self._refused(id)
                    raise
            else:
                return True
            await asyncio.sleep(_FIRST_PAUSE * random.random())
        # Written to without pause: delete whatever is there, and look afterwards what that was.
        revision = await self._store(fabric, write, None)
        before = await all_known(fabric, await fabric.log.as_of([write.subject], revision - 1) or ())
        return any(holds_something(record, fabric.log.now()) for record in before)

    async def set_many(
        self,
        values: Mapping[str, Any],
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        ttl: float | None = None,
        event_id: str | None = None,
    ) -> int:
        """Store several values, all or none, and return the revision of the last; at most 1,000 at once.

        ``event_id`` repeats a set_many of the same values whose outcome was unknown, without storing it twice; that of
        a write to other keys is an :class:`InvalidInputError`.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"set_many of a {type(values).__name__}: give a dict of keys and values")
        if not values:
            raise InvalidInputError("set_many of nothing: give at least one key and value")
        if len(values) > MAX_BATCH:
            raise InvalidInputError(
                f"{len(values)} values: at most {MAX_BATCH} can be stored together; split them; nothing was written"
            )
        for key in values:
            check_write(key, ttl, event_id)
        target = write_scope(self._place(), scope, scope_id)
        encoded = {key: self.schemas.encode(key, value) for key, value in values.items()}
        places = [place_of(target, key) for key in encoded]
        effects = self._effects()
        batch = event_id or new_id()
        if effects is not None and event_id is None:
            contents = [("set", each.payload, repr(ttl)) for each in encoded.values()]
            batch, _ = effects.of_batch(list(zip(places, contents, strict=True)))
        ids = ids_in_batch(batch, places)
        fabric = await self._fabric()
        writer = self._writer()
        writes = [
            prepare(fabric, target, key, "set", each.payload, writer, ttl=ttl, event_id=id, stamp=each.stamp)
            for (key, each), id in zip(encoded.items(), ids, strict=True)
        ]
        try:
            revision = await store_together(fabric, self._lifetimes, writes, repeated=event_id is not None)
        except OutcomeUnknownError as error:
            raise OutcomeUnknownError(
                f"{error}; the same set_many with event_id={batch!r} within two minutes cannot store it twice",
                event_id=batch,
            ) from None
        if event_id is not None:
            await check_same(fabric, writes, revision)
        self.seen.saw(revision)
        return revision

    async def clear(self, scope: str | None = None, scope_id: str | None = None) -> int:
        """Delete every key of one scope, as events with ``reason="cleared"``, and return how many there were.

        The scope must be named (or be that of a view): clearing is never a matter of resolution. A key written
        meanwhile stays. The past keeps everything.
        """
        if scope is None and self._bound is None:
            raise InvalidInputError("clear() without a scope: say which, e.g. clear(scope='session', scope_id=…)")
        target = write_scope(self._place(), scope, scope_id)
        deleted = await clearing.clear(await self._fabric(), target, self._writer(), "cleared")
        self.seen.saw(deleted.revision)
        return deleted.number

    def transaction(self, *, once: bool = False, event_id: str | None = None) -> Transaction:
        """Several reads and writes as one: ``async with memory.transaction() as tx``; see :class:`Transaction`.

        With ``once``, in a handler, they are stored together with a marker that the handler has handled its event, and
        so at most once however often, and in however many instances, the event comes again: ``tx.handled`` says then
        that it has been, and the end of the block stores nothing. One such transaction a run.

        ``event_id``, from an :class:`OutcomeUnknownError`, repeats a transaction whose outcome was unknown: run the
        block again. If it had been stored, nothing is stored now, whatever the block writes this time, and
        ``tx.revision`` is the first one's.

        Raises :class:`InvalidInputError` for ``once`` outside a handler: a reasoner has no event to mark, even if a
        handler calls it.
        """
        check_event_id(event_id)
        effects = self._effects()
        if once and event_id is not None:
            raise InvalidInputError(
                "transaction(once=True) knows by its marker whether it has been stored: repeat it without event_id"
            )
        if once and effects is None:
            raise InvalidInputError(
                "transaction(once=True) works in a handler itself, and one with delivery='agent', where there is an "
                "event that can be marked as handled; elsewhere, leave once out"
            )
        return Transaction(
            self._fabric,
            self._lifetimes,
            self.schemas,
            self._place(),
            self._writer(),
            self.seen,
            effects,
            once=once,
            event_id=event_id,
        )

    def offline(self, *, limit: int = 1000, timeout: float = 60.0) -> OfflineBuffer:
        """A buffer of writes that may wait while the server is away: ``async with memory.offline() as buffer``.

        At most ``limit`` writes wait; leaving the block waits up to ``timeout`` seconds for them to be stored; see
        :class:`OfflineBuffer`.
        """
        return OfflineBuffer(
            self._fabric, self._lifetimes, self.schemas, self._place, self._writer, limit=limit, timeout=timeout
        )

    def lock(
        self,
        name: str,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        ttl: float = 30.0,
        timeout: float | None = None,
    ) -> Lock:
        """A lock on a name, in the scope an unscoped write would go to: ``async with memory.lock("reindex") as lock``.

        Held by a lease of ``ttl`` seconds that is renewed while the block runs. ``timeout`` bounds the wait for it
        (seconds; None: for ever). Guard writes with ``fence=lock``; see :class:`Lock`.
        """
        return Lock(
            self._fabric,
            write_scope(self._place(), scope, scope_id),
            name,
            self._writer(),
            ttl=ttl,
            timeout=timeout,
        )

    async def _store_fenced(
        self, fabric: Fabric, write: Write, if_revision: int | None, lock: Lock, *, repeated: bool
    ) -> int:
        """Store a write that the server accepts only while the lock is ours."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + fabric.log.timeout
        while True:
            fence = lock.fence(fabric)
            expectations = [fence] if if_revision is None else [fence, Expectation(write.subject, if_revision)]
            try:
                revision = await store_together(fabric, self._lifetimes, [write], expectations, repeated=repeated)
            except Conflict:
                if not await lock.still_ours():
                    raise await lock.lost() from None
                if if_revision is not None:
                    (record,) = await fabric.log.last([write.subject])
                    actual = record.sequence if record else 0
                    if actual != if_revision:
                        raise ConflictError(write.key, expected=if_revision, actual=actual) from None
                if loop.time() > deadline:
                    raise UnavailableError(
                        f"{write.key!r} was refused for {fabric.log.timeout:g} s, though the lock {lock.name!r} is "
                        "held: other writes of the same scope stood in its way; nothing was written"
                    ) from None
                # The lease was renewed in between, which moved its revision: once more with the new one.
                await asyncio.sleep(_FIRST_PAUSE * random.random())
            else:
                self.seen.saw(revision)
                return revision
