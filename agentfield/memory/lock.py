"""Locks: one holder at a time, by lease, with fencing that the server enforces.

Owns: the life of a lease. A lock is a subject of its own in the log; to hold it is to have written its last event. A
guarded write carries the expectation that this is still so, and the server refuses it otherwise: a holder that was
paused and wakes up after its lease cannot write, whatever it believes. Invariants: the token only grows; a lease that
has run out by our own clock is never renewed and never used again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

import orjson

from agentfield import execution
from agentfield.amount import check_span
from agentfield.codec import Record, is_delete
from agentfield.errors import (
    AgentFieldError,
    InvalidInputError,
    LockLostError,
    OutcomeUnknownError,
    UnavailableError,
)
from agentfield.event import Writer
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID, encode_event
from agentfield.memory.state import is_live
from agentfield.scope import Scope

logger = logging.getLogger("agentfield.lock")

MIN_TTL = 1.0
"""Seconds: a shorter lease could run out during one slow write."""
_RENEWALS = 3
"""The lease is renewed this many times within its ttl."""
_FIRST_LOOK = 0.02
_LONGEST_LOOK = 0.5
_RELEASES = 5
_WITHDRAWAL = 5.0
"""Seconds in which a lock is given back that nobody is going to hold, or to hold any longer; a millisecond is usual."""


class Lock:
    """A lock on a name, held inside ``async with memory.lock(name, ttl=…) as lock``; made by ``Memory.lock``."""

    def __init__(
        self,
        source: Callable[[], Awaitable[Fabric]],
        scope: Scope,
        name: str,
        writer: Writer,
        *,
        ttl: float,
        timeout: float | None,
    ) -> None:
        self.ttl = check_span(ttl, "ttl", remedy="; the lease is renewed while the lock is held, so 30 will mostly do")
        if self.ttl < MIN_TTL:
            raise InvalidInputError(
                f"ttl={ttl:g} s: a lease of at least {MIN_TTL:g} s, since it must outlast one slow write"
            )
        if timeout is not None:
            timeout = check_span(timeout, "timeout", remedy=", or None to wait for ever")
        self.name = name
        self._scope = scope
        self._source = source
        self._writer = writer
        self._timeout = timeout
        self._fabric: Fabric | None = None
        self._subject = ""
        self._token = 0
        self._revision = 0
        self._until = 0.0
        self._renewer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Lock {self.name!r} {'held, token ' + str(self._token) if self.held else 'not held'}>"

    @property
    def token(self) -> int:
        """The fencing number: larger for every later holder. Give it to systems outside that can compare it."""
        if not self._token:
            raise InvalidInputError(f"lock {self.name!r} has no token before it is held")
        return self._token

    @property
    def held(self) -> bool:
        """Whether the lease surely runs at this moment, by this process's own clock."""
        return self._renewer is not None and asyncio.get_running_loop().time() < self._until

    async def __aenter__(self) -> Self:
        """Wait for the lock and take it. :class:`UnavailableError` if that takes longer than ``timeout``.

        If it is cancelled, or ends with :class:`OutcomeUnknownError`, what may have been taken is given back, for which
        it waits up to 5 s; only if that fails, or is cancelled too, nobody may have the lock until its ttl is over.
        """
        if self._fabric is not None:
            raise InvalidInputError("a lock can be entered once: make a new one with memory.lock()")
        self._fabric = await self._source()
        subject = self._fabric.subjects.memory(self._scope, self.name)
        namespace = self._fabric.subjects.namespace
        self._subject = f"{namespace}.locks.{subject.removeprefix(f'{namespace}.memory.')}"
        loop = asyncio.get_running_loop()
        try:
            await self._acquire(math.inf if self._timeout is None else loop.time() + self._timeout)
        except TimeoutError:
            raise UnavailableError(
                f"lock {self.name!r} is held by another and was not free within {self._timeout:g} s; nothing was done"
            ) from None
        self._renewer = asyncio.create_task(self._renew(), name=f"lease of lock {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back at once, if it is still ours; otherwise there is nothing to give back.

        A cancellation while it does so takes effect when that is done, or after 5 s; a second one at once.
        """
        renewer, self._renewer = self._renewer, None
        if renewer is None:
            return
        renewer.cancel()
        await asyncio.gather(renewer, return_exceptions=True)
        try:
            await self._release()
        except AgentFieldError as failure:
            logger.warning("lock %s could not be given back (%s); it is free when its lease ends", self.name, failure)
        except asyncio.CancelledError:
            await self._insist(self._release)
            raise

    def fence(self, fabric: Fabric) -> Expectation:
        """What a write that is guarded must expect of the log that it goes to.

        :class:`LockLostError`, and nothing written, if the lease has run out; :class:`InvalidInputError` if the lock is
        in another log, of which the server cannot know when it stores the write.
        """
        if self._fabric is not None and not self._fabric.log.is_same_as(fabric.log):
            raise InvalidInputError(
                f"fence: the lock {self.name!r} is of namespace {self._fabric.subjects.namespace!r} at "
                f"{self._fabric.connection.url}, the write goes to namespace {fabric.subjects.namespace!r} at "
                f"{fabric.connection.url}: take the lock where you write; nothing was written"
            )
        if not self.held:
            raise LockLostError(self.name, expected=self._token or None, actual=None)
        return Expectation(self._subject, self._revision)

    async def lost(self) -> LockLostError:
        """The error for a guarded write that the server refused because the lock is no longer ours."""
        record = await self._last()
        self._until = 0.0
        return LockLostError(self.name, expected=self._token, actual=_token_of(record))

    async def still_ours(self) -> bool:
        """Whether the lock's last event in the log is one of ours; if so, it is what is expected from now on.

        A renewal moves the lock's revision, and the log may know of it before we do.
        """
        record = await self._last()
        if record is None or _token_of(record) != self._token:
            return False
        self._revision = max(self._revision, record.sequence)
        return True

    async def _last(self) -> Record | None:
        assert self._fabric is not None
        (record,) = await self._fabric.log.last([self._subject])
        return record

    async def _acquire(self, deadline: float) -> None:
        """Take the lock. TimeoutError at the deadline; a write is never cut short, since it may already be stored."""
        assert self._fabric is not None
        loop = asyncio.get_running_loop()
        pause = _FIRST_LOOK
        while True:
            async with asyncio.timeout_at(deadline if deadline < math.inf else None):
                record = await self._last()
                if record is not None and is_live(record, self._fabric.log.now()):
                    await asyncio.sleep(pause * (0.5 + random.random()))
                    pause = min(_LONGEST_LOOK, pause * 2)
                    continue
            sent = loop.time()
            expected = record.sequence if record else 0
            event_id = execution.new_id()
            try:
                self._revision = self._token = await self._write(expected, event_id)
            except Conflict:
                continue  # another was faster
            except (asyncio.CancelledError, OutcomeUnknownError):
                await self._insist(partial(self._withdraw, expected, event_id))
                raise
            self._until = sent + self.ttl
            return

    async def _write(self, expected: int, event_id: str | None = None) -> int:
        assert self._fabric is not None
        id = event_id or execution.new_id()
        headers = encode_event(event_id=id, operation="set", writer=self._writer, ttl=self.ttl)
        payload = orjson.dumps({"lock": self.name, "token": self._token or None})
        return (await self._fabric.log.append(self._subject, payload, headers, expected=expected)).sequence

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do a last thing although it is over for us, for so long as anybody can be made to wait for it."""
        try:
            async with asyncio.timeout(_WITHDRAWAL):
                await step()
        except (TimeoutError, AgentFieldError) as failure:
            why = failure or f"no answer within {_WITHDRAWAL:g} s"
            logger.warning("lock %s could not be given back (%s); it is free when its lease ends", self.name, why)

    async def _withdraw(self, expected: int, event_id: str) -> None:
        """See that a write which was to take the lock, and of which nobody knows whether it did, has not taken it.

        The lock is given back from where that write would have found it: if it is still on its way, it then comes too
        late. What stands in the way is either that very write, and is given back in its turn, or somebody else's.
        """
        assert self._fabric is not None
        headers = encode_event(event_id=execution.new_id(), operation="delete", writer=self._writer)
        try:
            await self._fabric.log.append(self._subject, b"", headers, expected=expected)
        except Conflict:
            record = await self._last()
            if record is not None and record.headers.get(EVENT_ID) == event_id:
                await self._fabric.log.append(self._subject, b"", headers, expected=record.sequence)

    async def _release(self) -> None:
        assert self._fabric is not None
        headers = encode_event(event_id=execution.new_id(), operation="delete", writer=self._writer)
        for _ in range(_RELEASES):
            try:
                await self._fabric.log.append(self._subject, b"", headers, expected=self._revision)
                return
            except Conflict:
                if not await self.still_ours():  # else a renewal had been on its way, or a write that is fenced
                    logger.info("lock %s had been lost before it was given back", self.name)
                    return
                await asyncio.sleep(_FIRST_LOOK)

    async def _renew(self) -> None:
        """Prolong the lease in time, for as long as it surely runs; what is uncertain is tried again until then."""
        loop = asyncio.get_running_loop()
        pause = self.ttl / _RENEWALS
        while True:
            await asyncio.sleep(pause)
            sent = loop.time()
            if sent >= self._until:
                logger.warning("lock %s: the lease ran out before it could be renewed", self.name)
                return
            pause = min(self.ttl / _RENEWALS, max(_FIRST_LOOK, (self._until - sent) / 4))
            try:
                async with asyncio.timeout_at(self._until):
                    try:
                        revision = await self._write(self._revision)
                    except Conflict:
                        if await self.still_ours():  # an earlier renewal got through, after all
                            pause = 0.0
                            continue
                        self._until = 0.0
                        logger.warning("lock %s is lost: another holds it", self.name)
                        return
            except (TimeoutError, AgentFieldError) as error:
                logger.debug("lock %s: renewing: %s", self.name, error or "no answer in time")
                continue
            self._revision = max(self._revision, revision)
            self._until = sent + self.ttl
            pause = self.ttl / _RENEWALS


def _token_of(record: Record | None) -> int | None:
    """The token of who holds a lock by its last event; None if nobody does."""
    if record is None or is_delete(record):
        return None
    try:
        token = orjson.loads(record.payload)["token"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None  # not of our making
    return record.sequence if token is None else int(token)
