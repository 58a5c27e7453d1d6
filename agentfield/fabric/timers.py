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
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from agentfield.errors import UnavailableError
from agentfield.fabric.connection import Connection, Message, Subscription
from agentfield.fabric.faults import Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import API, ATTEMPT, PATIENCE, api, backoff
from agentfield.fabric.topology import Topology

logger = logging.getLogger("agentfield.timers")

WORKER = "expiry"
_BATCH = 500
_EXPIRES = 10.0
"""Seconds a pull of the worker stays open; due messages come the moment they are due."""
_LINGER = 0.01
"""Seconds to wait for more after the first due message, so that a burst is worked off in batches."""
_ACK_WAIT = 60.0
"""Seconds after which a due message goes to another worker: this one died, or is overwhelmed."""
_PULL = orjson.dumps({"batch": _BATCH, "expires": int(_EXPIRES * 1e9)})


class Due(NamedTuple):
    """A timer that has fired: its name, what was stored with it, and where to acknowledge it."""

    name: str
    payload: bytes
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
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        attempt = 0
        while True:
            fault: Fault
            try:
                limit = min(ATTEMPT, max(0.001, deadline - loop.time()))
                answer = orjson.loads(
                    (await self._connection.request(self._at + name, payload, headers, timeout=limit)).payload
                )
                if "error" not in answer:
                    return
                fault = ServerFault.of(answer["error"])
                if fault.verdict is not Verdict.RETRY:
                    raise error_of(fault, f"setting the timer {name!r}")
            except (NoAnswerFault, NoRespondersFault) as caught:
                fault = caught
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise error_of(fault, f"setting the timer {name!r}")
            await asyncio.sleep(pause)

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
        self._messages: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._owed = 0

    async def next(self) -> list[Due]:
        """Wait until at least one timer is due, and return up to 500. Acknowledge them with :meth:`done`.

        Raises :class:`UnavailableError` when the server or the consumer is away; call again.
        """
        if self._subscription is None:
            self._subscription = await self._connection.subscribe(self._inbox, self._on_message)
        due: list[Due] = []
        while len(due) < _BATCH:
            if self._owed <= 0:
                await self._connection.publish(self._next, _PULL, reply=self._inbox)
                self._owed = _BATCH
            try:
                async with asyncio.timeout(_LINGER if due else _EXPIRES + 2.0):
                    message = await self._receive()
            except TimeoutError:
                if due:
                    return due  # the pull stays open: what it still brings is taken next time
                self._owed = 0
                raise UnavailableError("the server does not answer the expiry worker") from None
            if not message.status:
                due.append(Due(message.subject.removeprefix(self._prefix), message.payload, message.reply))
                self._owed -= 1
                continue
            self._owed = 0
            if message.status not in (404, 408, 409):
                raise UnavailableError(f"the timers' consumer is gone (status {message.status})")
            if due:
                return due
        return due

    async def done(self, due: Sequence[Due]) -> None:
        """These need no more attention. A lost acknowledgement only makes them come again."""
        for item in due:
            await self._connection.publish(item.reply, b"+ACK")

    async def aclose(self) -> None:
        """End the subscription; what is not acknowledged goes to another worker. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def _receive(self) -> Message:
        while not self._messages:
            self._wake.clear()
            await self._wake.wait()
        return self._messages.popleft()

    async def _on_message(self, message: Message) -> None:
        self._messages.append(message)
        self._wake.set()
