"""Offline moments: a bounded buffer of writes that wait while the server is away.

Owns: the line of waiting writes. Opt-in: an ordinary write that cannot be stored says so, this one waits. Must not
know: how a write is stored. Invariants: writes are stored in the order they were given, each once, however often it is
tried; nothing is dropped silently: a full buffer refuses, a refused write is reported, and whatever still waits at the
end is named, what may be stored apart from what is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

from agentfield.amount import check_count, check_span, number_of
from agentfield.errors import AgentFieldError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.event import Operation, Writer
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID, check_ttl
from agentfield.key import check_key
from agentfield.memory.addressing import Place, write_scope
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.preparing import Write, prepare
from agentfield.memory.writing import store
from agentfield.schema import Schemas, Stamp
from agentfield.scope import Scope

logger = logging.getLogger("agentfield.offline")

_PAUSE = 0.25
"""Seconds between tries while the server is away; each try itself waits for the connection."""


class Waiting(NamedTuple):
    """A write that waits, or that failed."""

    event_id: str
    scope: Scope
    key: str
    operation: Operation
    payload: bytes
    stamp: Stamp | None
    ttl: float | None
    writer: Writer


class OfflineBuffer:
    """Writes that are stored as soon as the server is there; made by ``Memory.offline``, used as ``async with``.

    ``set`` and ``delete`` return at once with the event id under which the write will be stored. ``depth`` says how
    many wait, ``failed`` which were refused for good and why. Leaving the block, also by an exception or a
    cancellation, waits until all are stored, at most ``timeout`` seconds; then :class:`UnavailableError` names what
    still waits (as a note on the exception, if one is on its way). A cancellation while it waits ends that at once, and
    what is left is named in the log. Writes that wait live in this process's memory: a crash loses them, which is why
    this is opt-in.
    """

    def __init__(
        self,
        source: Callable[[], Awaitable[Fabric]],
        lifetimes: Lifetimes,
        schemas: Schemas,
        place: Callable[[], Place],
        writer: Callable[[], Writer],
        *,
        limit: int,
        timeout: float,
    ) -> None:
        check_count(limit, "limit")
        timeout = check_span(timeout, "timeout")
        self._source = source
        self._lifetimes = lifetimes
        self._schemas = schemas
        self._place = place
        self._writer = writer
        self._limit = limit
        self._timeout = timeout
        self._line: deque[Waiting] = deque()
        self._changed = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._sent: Waiting | None = None
        """The write that has been tried, and of which it is not known whether a try has stored it."""
        self.failed: list[tuple[Waiting, AgentFieldError]] = []
        """Writes that the server or the library refused for good, with the reason; also logged."""

    @property
    def depth(self) -> int:
        """How many writes wait."""
        return len(self._line)

    async def __aenter__(self) -> Self:
        """Begin to send in the background; needs no server yet."""
        self._sender = asyncio.create_task(self._send(), name="agentfield offline buffer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything is stored, then stop, however the block is left."""
        try:
            if error is None:
                await self.flush()
            elif not isinstance(error, GeneratorExit):  # which forbids to wait
                try:
                    await self.flush()
                except UnavailableError as left:
                    error.add_note(f"offline buffer: {left}")
        finally:
            sender, self._sender = self._sender, None
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            self._report()

    def set(
        self, key: str, value: Any, scope: str | None = None, scope_id: str | None = None, *, ttl: float | None = None
    ) -> str:
        """Store a value when the server is there; return the event's id. The ttl counts from when it is stored.

        :class:`UnavailableError` if the buffer is full (nothing was taken); :class:`InvalidInputError` as for a set.
        """
        encoded = self._schemas.encode(key, value)
        seconds = None if ttl is None else check_ttl(ttl)
        return self._take(key, "set", encoded.payload, encoded.stamp, scope, scope_id, seconds)

    def delete(self, key: str, scope: str | None = None, scope_id: str | None = None) -> str:
        """Delete a key when the server is there; return the event's id. Otherwise as ``set``."""
        return self._take(key, "delete", b"", None, scope, scope_id, None)

    async def flush(self) -> None:
        """Return when everything taken so far is stored, or has failed.

        :class:`UnavailableError` after the buffer's timeout; what waits goes on waiting.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while self._line:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise UnavailableError(
                f"{number_of(len(self._line), 'write')} still waiting for the server after {self._timeout:g} s: "
                f"{_names(self._line)}"
            ) from None

    def _report(self) -> None:
        """Name in the log what is left behind."""
        left = list(self._line)
        if left and left[0] is self._sent:
            logger.error(
                "offline buffer closed before the server had confirmed %s of %r: it may be stored, or not, as event %s",
                left[0].operation,
                left[0].key,
                left.pop(0).event_id,
            )
        if left:
            logger.error("offline buffer closed with %s not stored: %s", number_of(len(left), "write"), _names(left))

    def _take(
        self,
        key: str,
        operation: Operation,
        payload: bytes,
        stamp: Stamp | None,
        scope: str | None,
        scope_id: str | None,
        ttl: float | None,
    ) -> str:
        if self._sender is None:
            raise InvalidInputError("an offline buffer works inside its `async with` block, and only there")
        check_key(key)
        where = write_scope(self._place(), scope, scope_id)
        if len(self._line) >= self._limit:
            raise UnavailableError(
                f"the offline buffer is full: {self._limit} writes wait for the server; {key!r} was not taken"
            )
        waiting = Waiting(new_id(), where, key, operation, payload, stamp, ttl, self._writer())
        self._line.append(waiting)
        self._changed.set()
        return waiting.event_id

    async def _send(self) -> None:
        unknown = ""
        while True:
            while not self._line:
                self._changed.clear()
                await self._changed.wait()
            head = self._line[0]
            try:
                fabric = await self._source()
                write = prepare(
                    fabric,
                    head.scope,
                    head.key,
                    head.operation,
                    head.payload,
                    head.writer,
                    ttl=head.ttl,
                    event_id=head.event_id,
                    stamp=head.stamp,
                )
                if head.event_id != unknown or not await _is_stored(fabric, write):
                    self._sent = head
                    await store(fabric, self._lifetimes, write, None)
            except (UnavailableError, OutcomeUnknownError) as error:
                if isinstance(error, OutcomeUnknownError):
                    unknown = head.event_id
                elif head.event_id != unknown:
                    self._sent = None
                logger.info("offline buffer: %s waiting: %s", number_of(len(self._line), "write"), error)
                await asyncio.sleep(_PAUSE)
                continue
            except AgentFieldError as error:
                logger.error("offline buffer: %s of %r was refused: %s", head.operation, head.key, error)
                self.failed.append((head, error))
            self._line.popleft()
            self._changed.set()


def _names(writes: Iterable[Waiting]) -> str:
    keys = [waiting.key for waiting in writes]
    return ", ".join(repr(key) for key in keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


async def _is_stored(fabric: Fabric, write: Write) -> bool:
    """Whether an earlier try is in the log, however long ago: the server recognises repeats for a while only."""
    async for record in fabric.log.read([write.subject]):
        if record.headers.get(EVENT_ID) == write.headers[EVENT_ID]:
            return True
    return False
