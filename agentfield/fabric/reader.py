"""Reading a slice of a stream in order, or following it, through a consumer that leaves nothing behind.

Owns: the pulls, and making another consumer after the last event seen when the server lost ours or skipped one. Must
not know: what the events mean. Invariant: every matching event once, in order, no gap, whatever happens to the
connection meanwhile; and from a reader that is asked to be gapless, not even one that comes of events being taken out
of the stream before it read them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Self

import orjson

from agentfield.codec import Record
from agentfield.errors import ClosedError, ResyncRequired, UnavailableError
from agentfield.fabric import records
from agentfield.fabric.ephemeral import Ephemeral
from agentfield.fabric.faults import Fault, NoAnswerFault
from agentfield.fabric.jetstream import API, PATIENCE, backoff, ends_pull
from agentfield.fabric.slice import Slice
from agentfield.fabric.trimmed import lost_to
from agentfield.fabric.wire.client import DESCRIPTION
from agentfield.fabric.wire.connection import Connection, ConnectionState
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription

logger = logging.getLogger("agentfield.reader")

_BATCH = 500
_BATCH_BYTES = 4 * 1024 * 1024
_EXPIRES = 2.0
"""Seconds a pull stays open; the server ends it with a status, so silence for longer means that it is gone."""
_SILENCE = 5.0
_LOOK = 10.0
"""Seconds between looks at whether the leader has something that does not come."""
_PAUSE = 0.2
"""Seconds without an open pull after which events may have been stored, and taken out again, behind our back."""


class Reader:
    """An ordered walk over the events of ``stream`` that match ``filters``. Use as an async context manager.

    Starts at sequence ``start``, or, with ``last_per_subject``, holds just the last event of every subject. Pulls
    happen only as fast as the caller takes events: a slow caller costs the server nothing and loses nothing. If events
    that a ``gapless`` reader had still to give are taken out of the stream, it raises :class:`ResyncRequired` in their
    place; any other goes on with those that are left. With ``exact``, the headers of every record are
    :class:`~agentfield.fabric.wire.client.ExactHeaders`. ``batch_bytes`` bounds what is asked for at a time.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        *,
        start: int = 1,
        last_per_subject: bool = False,
        gapless: bool = False,
        exact: bool = False,
        batch_bytes: int = _BATCH_BYTES,
        patience: float = PATIENCE,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._slice = Slice(connection, stream, filters, patience=patience)
        self._consumer = Ephemeral(self._slice)
        self._next = max(1, start)
        self._last_per_subject = last_per_subject
        self._gapless = gapless
        self._behind = False
        self._sound = 0
        self._exact = exact
        self._patience = patience
        self._expected = 1
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._pull = 0
        self._arrived: deque[Message] = deque()
        self._signal = asyncio.Event()
        self._subscription: Subscription | None = None
        self._owed = 0
        self._batch_bytes = batch_bytes
        self._pending = 0
        self._began_at = 0
        self._made = 0
        self._looked = 0.0
        self._missed: int | None = None
        self._closed = False
        self._lost = False
        self._closing = asyncio.Lock()
        self._forget_listener: Callable[[], None] | None = None
        self._forget_closing: Callable[[], None] | None = None
        self._ahead: records.Delivery | None = None
        self.heard = 0.0
        """When the server last said anything, by the loop's clock."""

    @property
    def pending(self) -> int:
        """How many matching events the stream held beyond the last one given, as far as is known."""
        return self._pending

    async def __aenter__(self) -> Self:
        self._subscription = await self._connection.listen(f"{self._inbox}.*", self._on_message, exact=self._exact)
        self._forget_listener = self._connection.on_state(self._on_state)
        self._forget_closing = self._connection.before_close(self.aclose)
        try:
            await self._create()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Delete the consumer and end the subscription. Idempotent; if the server is away, it forgets by itself."""
        self._closed = True
        self._signal.set()
        async with self._closing:
            if self._forget_listener is not None:
                self._forget_listener()
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            await self._consumer.delete()
            if self._forget_closing is not None:  # not before: until then, the connection must wait for it
                self._forget_closing()

    async def _create(self) -> None:
        answer = await self._consumer.create(None if self._last_per_subject else self._next)
        if self._last_per_subject:
            self._next = 1
            self._began_at = int((await self._slice.info())["state"]["last_seq"])
        self._expected = 1
        self._pending = int(answer.get("num_pending", 0))
        self._made = records.nanoseconds_of(answer["created"])
        self._behind, self._sound = True, 0
        if self._gapless:
            await self._check_start()
        self._arrived.clear()
        self._owed = 0

    async def _check_start(self) -> None:
        """Raise :class:`ResyncRequired` if the stream begins after the next sequence that we have still to give."""
        info = await self._slice.info()
        first = lost_to(info["config"], info["state"], self._made)
        if first > self._next:
            raise ResyncRequired(requested=self._next, first_available=first)

    async def _check_gap(self) -> None:
        """Before the event just taken is given: see that none before it was taken out.

        That can only be if we were behind, and what is found holds for all that has arrived by now. Nobody knows what
        matched of what is gone: a gap may be told of in which nothing did, but never the reverse.
        """
        if not self._gapless or self._sound > 0 or not self._behind:
            self._sound -= 1
            return
        arrived = sum(not message.status for message in self._arrived)
        await self._check_start()
        self._sound = arrived

    def _on_state(self, state: ConnectionState) -> None:
        if state != "connected":  # the open pull is gone, and after a restart of the server so is the consumer
            self._lost = True
            self._signal.set()

    def _on_message(self, message: Message) -> None:
        self._arrived.append(message)
        self.heard = asyncio.get_running_loop().time()
        self._signal.set()

    async def until(self, target: int) -> AsyncGenerator[Record, None]:
        """Events up to sequence ``target`` (one the stream has reached), then the end.

        Raises :class:`UnavailableError` when nothing comes for as long as the reader's patience.
        """
        while not await self._all_came(target):
            delivery = await self._deliver(self._patience)
            if delivery is None:
                continue
            if delivery.record.sequence > target:
                self._ahead = delivery  # follow() goes on with it
                return
            yield delivery.record

    async def last_of_each(self) -> AsyncGenerator[Record, None]:
        """The last event of every subject, then the end; for a reader made with ``last_per_subject``.

        A subject may come again, with a newer event, if it is written meanwhile or the replica that answers was
        behind; and after an interruption everything comes again. Raises as :meth:`until`.
        """
        # Not before what the stream had reached when the consumer was there: a subject that was written just before
        # moves up to that point, and so may any number of them.
        while not await self._all_came(self._began_at):
            delivery = await self._deliver(self._patience)
            if delivery is not None:
                yield delivery.record

    async def _all_came(self, target: int) -> bool:
        """Whether every event up to ``target`` has come. Mends what keeps them from coming, as far as it can be told.

        What a consumer has pending is the word of one replica. One that is behind, say after a restart, does not even
        deliver what it catches up on, so another consumer is tried then, until the reader's patience is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        attempt = 0
        if self._closed:
            raise ClosedError("this reader is closed")
        while self._next <= target and self._pending == 0:
            if await self._slice.nothing_left(self._next, target):
                return True
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise UnavailableError(f"reading {self._stream}: no replica caught up to {target}")
            await asyncio.sleep(pause)
            await self._recover(deadline)
        return self._next > target

    async def some(self, most: int) -> list[Record]:
        """The next events: those that have arrived, at least one and at most ``most``. Waits for the first.

        Raises :class:`ClosedError` once the reader or its connection is closed.
        """
        taken: list[Record] = []
        while not taken or (len(taken) < most and self._event_arrived()):
            delivery = await self._deliver()
            if delivery is not None:
                taken.append(delivery.record)
            elif taken:
                break
        return taken

    def _event_arrived(self) -> bool:
        """Whether the next delivery is there, so that to take it is not to wait."""
        return bool(self._arrived) and f".{self._consumer.name}." in self._arrived[0].reply

    async def block(self, target: int, most: int) -> list[Record]:
        """The next events up to sequence ``target``: those that have arrived, at most ``most``; none at the end.

        Waits for the first. Raises as :meth:`until`.
        """
        taken: list[Record] = []
        while not taken and not await self._all_came(target):
            delivery = await self._deliver(self._patience)
            while delivery is not None:
                if delivery.record.sequence > target:
                    self._ahead = delivery
                    return taken
                taken.append(delivery.record)
                if len(taken) == most or not self._event_arrived():
                    return taken
                delivery = await self._deliver(self._patience)
        return taken

    async def follow(self) -> AsyncGenerator[Record, None]:
        """Events without end, the past first; returns when the reader is closed."""
        while not self._closed:
            try:
                delivery = await self._deliver()
            except ClosedError:
                return
            if delivery is not None:
                yield delivery.record

    async def _deliver(self, patience: float | None = None) -> records.Delivery | None:
        """The next event; None where there was an interruption, after which it goes on with a new consumer.

        Waits however long it takes. With ``patience``, None as well where nothing came for a while, which may be
        because nothing is left, and an outage longer than that is :class:`UnavailableError`. Raises
        :class:`ClosedError` once the reader or its connection is closed.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        while True:
            try:
                message = await self._receive()
                if not message.reply and message.status:  # a stored message may look like one, but has a reply subject
                    idle = self._owed == _BATCH
                    self._end_of_pull(message)
                    if idle:
                        await self._look_for_lag()
                        if patience is not None:  # what was pending may have been deleted since, where that is possible
                            info = await self._slice.ask(f"CONSUMER.INFO.{self._stream}.{self._consumer.name}")
                            self._pending = int(info["num_pending"])
                            return None
                elif f".{self._consumer.name}." in message.reply:  # not from a consumer that was given up
                    delivery = records.of_consumer(message)
                    if delivery.consumer_sequence != self._expected:
                        raise NoAnswerFault("the consumer skipped an event")
                    await self._check_gap()
                    self._behind = delivery.pending > 0
                    self._expected += 1
                    self._owed -= 1
                    self._next = delivery.record.sequence + 1
                    self._pending = delivery.pending
                    return delivery
            except (Fault, UnavailableError, TimeoutError) as error:
                logger.debug("reader of %s: %s; continuing at %d", self._stream, error, self._next)
                await self._recover(None if patience is None else asyncio.get_running_loop().time() + patience)
                return None

    async def _look_for_lag(self) -> None:
        """Now and then while nothing comes: see that the replica that serves us did not miss anything."""
        now = asyncio.get_running_loop().time()
        if not self._connection.clustered or now < self._looked + _LOOK:
            return
        self._looked = now
        left = await self._slice.first(self._next)
        if left is not None and left == self._missed:
            raise NoAnswerFault(f"event {left} does not come")
        self._missed = left

    async def _receive(self) -> Message:
        """The next message of the open pull, opening one when there is none."""
        while not self._arrived:
            if self._closed:
                raise ClosedError("this reader is closed")
            if self._lost:
                raise NoAnswerFault("the connection was lost")
            if self._owed <= 0:
                await self._open_pull()
            self._signal.clear()
            async with asyncio.timeout(min(_SILENCE, self._patience + _EXPIRES)):
                await self._signal.wait()
        return self._arrived.popleft()

    async def _open_pull(self) -> None:
        self._pull += 1
        self._owed = _BATCH
        if asyncio.get_running_loop().time() > self.heard + _PAUSE:
            self._behind = True
        request = {"batch": _BATCH, "max_bytes": self._batch_bytes, "expires": int(_EXPIRES * 1e9)}
        subject = f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer.name}"
        await self._connection.publish(subject, orjson.dumps(request), reply=f"{self._inbox}.{self._pull}")

    def _end_of_pull(self, message: Message) -> None:
        """The server ended a pull: expired, complete, out of bytes; or it says that the consumer is gone."""
        if message.subject != f"{self._inbox}.{self._pull}":
            return
        description = message.headers.get(DESCRIPTION, "")
        if not ends_pull(message):
            raise NoAnswerFault(f"{message.status} {description}")
        if "MaxBytes" in description and self._owed == _BATCH:
            self._batch_bytes *= 2  # one event alone is larger than a batch may be
        self._owed = 0

    async def _recover(self, deadline: float | None = None) -> None:
        """A new consumer from the next event on. Tries for ever, as the connection does, or until ``deadline``."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while not self._closed:
            try:
                limit = self._patience if deadline is None else max(0.0, min(self._patience, deadline - loop.time()))
                await self._connection.wait_connected(limit)
                self._lost = False
                await self._consumer.delete()
                await self._create()
            except UnavailableError as error:
                logger.debug("reader of %s: %s", self._stream, error)
                if deadline is not None and loop.time() >= deadline:
                    raise
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            else:
                return
        raise ClosedError("this reader is closed")
