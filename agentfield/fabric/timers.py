"""Timers: asking the server to say when something is due, and hearing it, whoever is alive then.

Owns: one-shot schedules (ADR-51) on the timers stream, and the competing durable consumer by which any agent process
takes what has come due. Must not know: what a name stands for. Invariants: a timer that was set fires at least once,
not before its time, however many processes died meanwhile; setting a name again moves its timer; a due message is gone
only when a worker has acknowledged it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from agentfield.errors import AgentFieldError, UnavailableError
from agentfield.fabric import records
from agentfield.fabric.faults import Fault, error_of
from agentfield.fabric.jetstream import API, PATIENCE, api, publish
from agentfield.fabric.topology import Topology
from agentfield.fabric.wire.connection import Connection, ConnectionState
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription

logger = logging.getLogger("agentfield.timers")

WORKER = "expiry"
_BATCH = 500
_EXPIRES = 10.0
"""Seconds a pull of the worker stays open; due messages come the moment they are due."""
_LINGER = 0.01
"""Seconds to wait for more after the first due message, so that a burst is worked off in batches."""
_ACK_WAIT = 10.0
"""Seconds after which a due message goes to another worker: this one died, or is overwhelmed. Doing it twice is
harmless, so this need not be longer than most work takes."""
_PULL = orjson.dumps({"batch": _BATCH, "expires": int(_EXPIRES * 1e9)})


class Due(NamedTuple):
    """A timer that has fired: its name, what was stored with it, when it fired, and where to acknowledge it."""

    name: str
    payload: bytes
    fired: int
    """Nanoseconds since the epoch, by the server's clock: it is later than that now."""
    reply: str


class Timers:
    """The timers of one namespace."""

    def __init__(self, connection: Connection, topology: Topology, *, timeout: float = PATIENCE) -> None:
        self._connection = connection
        self._stream = topology.timers.name
        self._at = f"{topology.namespace}.timers.at."
        self._due = f"{topology.namespace}.timers.due."
        self._timeout = timeout

    async def schedule(self, name: str, at: int, payload: bytes = b"") -> None:
        """Let the timer ``name`` (subject tokens) fire at ``at`` (nanoseconds since the epoch, the server's clock).

        Replaces the timer of that name. Durable on return. Raises :class:`UnavailableError`: the timer may or may not
        be set then; setting it again is safe.
        """
        moment = datetime.fromtimestamp(at // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        headers = {
            "Nats-Schedule": f"@at {moment}.{at % 1_000_000_000:09d}Z",
            "Nats-Schedule-Target": self._due + name,
        }
        try:
            await publish(self._connection, self._at + name, payload, headers, patience=self._timeout)
        except (Fault, UnavailableError) as fault:
            raise error_of(fault, f"setting the timer {name!r}") from None

    async def names(self, kind: str) -> set[str]:
        """The names under ``kind`` that have a timer, waiting or due. Raises :class:`UnavailableError`."""
        found: set[str] = set()
        for prefix in (self._at, self._due):
            try:
                info = await api(
                    self._connection, f"STREAM.INFO.{self._stream}", {"subjects_filter": f"{prefix}{kind}.>"}
                )
            except Fault as fault:
                raise error_of(fault, "listing timers") from None
            found.update(subject.removeprefix(prefix) for subject in info["state"].get("subjects") or ())
        return found

    async def ensure_worker(self) -> None:
        """Create the durable consumer that all workers share, if it is not there."""
        config: dict[str, Any] = {
            "name": WORKER,
            "durable_name": WORKER,
            "description": "timers that have come due; every agent process takes part",
            "ack_policy": "explicit",
            "ack_wait": int(_ACK_WAIT * 1e9),
            "max_ack_pending": 20_000,
            "filter_subject": self._due + ">",
        }
        body = {"stream_name": self._stream, "config": config, "action": ""}
        try:
            await api(self._connection, f"CONSUMER.CREATE.{self._stream}.{WORKER}", body)
        except Fault as fault:
            raise error_of(fault, "preparing the expiry worker") from None

    def worker(self) -> Worker:
        """A worker of this process; see :class:`Worker`."""
        return Worker(self._connection, self._stream, self._due)


class Worker:
    """Takes due timers in batches, in competition with the workers of other processes. Close it when done."""

    def __init__(self, connection: Connection, stream: str, prefix: str) -> None:
        self._connection = connection
        self._next = f"{API}.CONSUMER.MSG.NEXT.{stream}.{WORKER}"
        self._prefix = prefix
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None
        self._messages: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._owed = 0
        self._open: dict[str, Due] = {}

    async def next(self) -> list[Due]:
        """Wait until at least one timer is due, and return up to 500. Then say :meth:`done` or :meth:`again` of each.

        Raises :class:`UnavailableError` when the server or the consumer is away; call again.
        """
        if self._subscription is None:
            self._subscription = await self._connection.listen(self._inbox, self._on_message)
            self._forget = self._connection.on_state(self._on_state)
        due: list[Due] = []
        while len(due) < _BATCH:
            if self._owed <= 0:
                await self._pull()
            try:
                async with asyncio.timeout(_LINGER if due else _EXPIRES + 2.0):
                    message = await self._receive()
            except TimeoutError:
                if due:
                    return due  # the pull stays open: what it still brings is taken next time
                self._owed = 0
                raise UnavailableError("the server does not answer the expiry worker") from None
            if message is None:
                continue  # the pull is gone
            if not message.status:
                self._owed -= 1
                item = Due(
                    message.subject.removeprefix(self._prefix),
                    message.payload,
                    records.of_consumer(message).record.timestamp,
                    message.reply,
                )
                self._open[item.reply] = item
                due.append(item)
                continue
            self._owed = 0
            if due:
                return due
            if message.status not in (404, 408, 409):
                raise UnavailableError(f"the timers' consumer is gone (status {message.status})")
        return due

    async def done(self, due: Sequence[Due]) -> None:
        """These need no more attention. A lost acknowledgement only makes them come again."""
        for item in due:
            await self._connection.publish(item.reply, b"+ACK")
            self._open.pop(item.reply, None)

    async def again(self, delay: float = 0.0) -> None:
        """Let whatever was taken and is not done come again after ``delay`` seconds, here or elsewhere."""
        word = b"-NAK" if not delay else b"-NAK " + orjson.dumps({"delay": int(delay * 1e9)})
        waiting = [*self._open, *(message.reply for message in self._messages if not message.status)]
        self._open.clear()
        self._messages.clear()
        self._owed = 0
        for reply in waiting:
            await self._connection.publish(reply, word)

    async def aclose(self) -> None:
        """End the subscription; what is not done goes to another worker. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        if self._forget is not None:
            self._forget()
        await subscription.unsubscribe()
        try:
            await self.again()
        except AgentFieldError as error:
            logger.debug("expiry worker: leaving %d timers to time out: %s", len(self._open), error)

    async def _pull(self) -> None:
        await self._connection.publish(self._next, _PULL, reply=self._inbox)
        self._owed = _BATCH

    async def _receive(self) -> Message | None:
        """The next message of the open pull, or None once there is no pull any more."""
        while not self._messages:
            if self._owed <= 0:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._messages.popleft()

    def _on_message(self, message: Message) -> None:
        self._messages.append(message)
        self._wake.set()

    def _on_state(self, state: ConnectionState) -> None:
        self._owed = 0  # the server forgets the pulls of a connection that is lost
        self._wake.set()
