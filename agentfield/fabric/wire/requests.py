"""Requests whose answers are awaited, over one reply inbox that all of a connection share.

Owns: the inbox, which request an answer is for, how long it is waited for, and how many may be in flight at once. Must
not know: how a message is sent, when a connection is up. Invariant: every request ends, answered, failed or by its
deadline, and leaves nothing behind when it does, or when it is cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from agentfield.errors import AccessDeniedError, UnavailableError
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault
from agentfield.fabric.wire.message import Message

IN_FLIGHT = 1000
"""Requests that may await their answers at once; more wait here. Enough to keep any server busy; far below what a
stream refuses, and few enough that each is answered well within one try."""


class Publish(Protocol):
    """Hands a message to the connection."""

    def __call__(self, subject: str, payload: bytes, headers: dict[str, str] | None, *, reply: str) -> Awaitable[None]:
        """Raises :class:`UnavailableError` if it was not sent."""


class _Pending:
    """A request whose answers are awaited: one future, and the answers so far."""

    __slots__ = ("future", "last", "messages", "subject")

    def __init__(self, subject: str, future: asyncio.Future[Message], last: Callable[[Message], bool] | None) -> None:
        self.subject = subject
        self.future = future
        self.last = last
        self.messages: list[Message] = []

    def retire(self) -> None:
        """Nobody waits any more; a failure that came meanwhile is looked at, so that asyncio need not complain."""
        if not self.future.cancel() and not self.future.cancelled():
            self.future.exception()


class Requests:
    """The requests of one connection."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._pending: dict[str, _Pending] = {}
        self._serial = 0
        self._room = asyncio.Semaphore(IN_FLIGHT)

    @property
    def inbox(self) -> str:
        """The subject, with its wildcard, on which all answers come, to be given to :meth:`take`."""
        return f"{self._inbox}.*"

    @property
    def in_flight(self) -> int:
        """How many await an answer now."""
        return len(self._pending)

    @property
    def made(self) -> int:
        """How many there have been."""
        return self._serial

    async def exchange(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None,
        timeout: float,
        last: Callable[[Message], bool] | None,
    ) -> list[Message]:
        """Send a request, and return its one answer, or those up to and including the one for which ``last`` is true.

        Raises :class:`UnavailableError` (nothing was sent), :class:`NoRespondersFault`, :class:`NoAnswerFault`, and
        whatever :meth:`fail` is given meanwhile.
        """
        loop = asyncio.get_running_loop()
        if self._room.locked():
            await self._wait_for_room(timeout)
        else:
            await self._room.acquire()
        self._serial += 1
        token = f"{self._serial:x}"
        pending = _Pending(subject, loop.create_future(), last)
        self._pending[token] = pending
        timer = loop.call_later(timeout, _expire, pending, timeout)
        try:
            await self._publish(subject, payload, headers, reply=f"{self._inbox}.{token}")
            message = await pending.future
        finally:
            timer.cancel()
            del self._pending[token]
            self._room.release()
            pending.retire()
        if message.status == 503:
            raise NoRespondersFault(f"nobody answers on {subject!r}")
        return pending.messages

    async def _wait_for_room(self, timeout: float) -> None:
        """Take a place once fewer requests are in flight, so that none times out for standing behind its fellows."""
        try:
            async with asyncio.timeout(timeout):
                await self._room.acquire()
        except TimeoutError:
            raise UnavailableError(
                f"{IN_FLIGHT} requests are waiting for the server, and none was answered within {timeout:g} s; "
                "this one was not sent"
            ) from None

    @contextmanager
    def failing(self) -> Iterator[asyncio.Future[Message]]:
        """A future that never has a result, and ends as a request would: by what :meth:`fail` is given."""
        lost = _Pending("", asyncio.get_running_loop().create_future(), None)
        self._serial += 1
        token = f"{self._serial:x}"
        self._pending[token] = lost
        try:
            yield lost.future
        finally:
            del self._pending[token]
            lost.retire()

    def take(self, message: Message) -> None:
        """What came to the inbox; an answer that nobody waits for any more is dropped."""
        pending = self._pending.get(message.subject.rpartition(".")[2])
        if pending is None or pending.future.done():
            return
        pending.messages.append(message)
        if pending.last is None or message.status == 503 or pending.last(message):
            pending.future.set_result(message)

    def fail(self, error: Exception) -> None:
        """End every one that still waits."""
        for pending in list(self._pending.values()):
            if not pending.future.done():
                pending.future.set_exception(error)

    def deny(self, subject: str) -> None:
        """End those on this subject, lowered: the server does not permit them."""
        for pending in list(self._pending.values()):
            if pending.subject.lower() == subject and not pending.future.done():
                pending.future.set_exception(
                    AccessDeniedError(
                        f"the server does not permit publishing to {pending.subject!r}", subject=pending.subject
                    )
                )


def _expire(pending: _Pending, timeout: float) -> None:
    if not pending.future.done():
        pending.future.set_exception(NoAnswerFault(f"no answer within {timeout:g} s"))
