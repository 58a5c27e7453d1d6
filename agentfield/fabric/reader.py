"""Reading a slice of a stream in order, or following it, through a consumer that leaves nothing behind.

Owns: ephemeral ordered consumers: created on demand, recreated after the last event seen when the server lost them or
skipped one, deleted at the end (and by the server after 30 s of silence, should we die). Must not know: what the events
mean. Invariant: every matching event once, in order, no gap, whatever happens to the connection meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Self

import orjson

from agentfield.codec import Record
from agentfield.errors import ClosedError, NotFoundError, UnavailableError
from agentfield.fabric import records
from agentfield.fabric.client import DESCRIPTION
from agentfield.fabric.connection import Connection, ConnectionState, Message, Subscription
from agentfield.fabric.faults import NO_MESSAGE, Fault, NoAnswerFault, ServerFault, error_of
from agentfield.fabric.jetstream import API, PATIENCE, api, backoff, ends_pull

logger = logging.getLogger("agentfield.reader")

_BATCH = 500
_BATCH_BYTES = 4 * 1024 * 1024
_EXPIRES = 2.0
"""Seconds a pull stays open; the server ends it with a status, so silence for longer means that it is gone."""
_SILENCE = 5.0
_INACTIVE = 30_000_000_000
"""Nanoseconds after which the server removes a consumer nobody pulls from."""


class Reader:
    """An ordered walk over the events of ``stream`` that match ``filters``. Use as an async context manager.

    Starts at sequence ``start``, or, with ``last_per_subject``, holds just the last event of every subject. Pulls
    happen only as fast as the caller takes events: a slow caller costs the server nothing and loses nothing.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        *,
        start: int = 1,
        last_per_subject: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._filters = list(filters)
        self._next = max(1, start)
        self._last_per_subject = last_per_subject
        self._patience = patience
        self._name = ""
        self._expected = 1
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._pull = 0
        self._arrived: deque[Message] = deque()
        self._signal = asyncio.Event()
        self._subscription: Subscription | None = None
        self._owed = 0
        self._batch_bytes = _BATCH_BYTES
        self._initial_pending = 0
        self._began_at = 0
        self._closed = False
        self._lost = False
        self._forget_listener: Callable[[], None] | None = None
        self._ahead: records.Delivery | None = None
        self.heard = 0.0
        """When the server last said anything, by the loop's clock."""

    async def __aenter__(self) -> Self:
        self._subscription = await self._connection.listen(f"{self._inbox}.*", self._on_message)
        self._forget_listener = self._connection.on_state(self._on_state)
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
        if self._closed:
            return
        self._closed = True
        self._signal.set()
        if self._forget_listener is not None:
            self._forget_listener()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        await self._delete()

    async def _delete(self) -> None:
        name, self._name = self._name, ""
        if not name or self._connection.state != "connected":
            return
        try:
            await self._connection.request(f"{API}.CONSUMER.DELETE.{self._stream}.{name}", timeout=2.0)
        except (Fault, UnavailableError, ClosedError) as error:
            logger.debug("deleting consumer %s: %s", name, error)

    async def _create(self) -> None:
        name = f"reader-{uuid.uuid4().hex}"
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE,
        }
        if self._filters:
            config["filter_subjects"] = self._filters
        if self._last_per_subject:
            config["deliver_policy"] = "last_per_subject"
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self._next}
        body = {"stream_name": self._stream, "config": config, "action": "create"}
        answer = await self._ask(f"CONSUMER.CREATE.{self._stream}.{name}", body)
        self._name = name
        if self._last_per_subject:
            self._began_at = int((await self._ask(f"STREAM.INFO.{self._stream}"))["state"]["last_seq"])
        self._expected = 1
        self._initial_pending = int(answer.get("num_pending", 0))
        self._arrived.clear()
        self._owed = 0

    def _on_state(self, state: ConnectionState) -> None:
        if state != "connected":  # the open pull is gone, and after a restart of the server so is the consumer
            self._lost = True
            self._signal.set()

    def _on_message(self, message: Message) -> None:
        self._arrived.append(message)
        self.heard = asyncio.get_running_loop().time()
        self._signal.set()

    async def until(self, target: int) -> AsyncGenerator[Record, None]:
        """Events up to sequence ``target`` (one the stream has reached), then the end."""
        if self._initial_pending == 0 and await self._nothing_left(self._next, target):
            return
        while True:
            delivery = await self._deliver()
            sequence = delivery.record.sequence
            if sequence > target:
                self._ahead = delivery  # follow() goes on with it
                return
            yield delivery.record
            if sequence == target or (delivery.pending == 0 and await self._nothing_left(sequence + 1, target)):
                return

    async def last_of_each(self) -> AsyncGenerator[Record, None]:
        """The last event of every subject, then the end; for a reader made with ``last_per_subject``.

        A subject may come again, with a newer event, if it is written meanwhile or the replica that answers was
        behind; and after an interruption everything comes again.
        """
        if self._initial_pending == 0 and await self._nothing_left(1, self._began_at):
            return
        while True:
            delivery = await self._deliver()
            sequence = delivery.record.sequence
            yield delivery.record
            # Not before what the stream had reached when the consumer was there: a subject that was written just
            # before moves up to that point, and so may any number of them.
            if sequence >= self._began_at:
                return
            if delivery.pending == 0 and await self._nothing_left(sequence + 1, self._began_at):
                return

    async def _nothing_left(self, start: int, stop: int) -> bool:
        """Whether no event matches from sequence ``start`` to ``stop``, by the word of the stream's leader.

        What a consumer has pending is the word of one replica, which may be behind. A lone server is its own leader.
        """
        if start > stop or not self._connection.clustered:
            return True
        answers = await asyncio.gather(*(self._first(subject, start) for subject in self._filters or [">"]))
        return all(sequence is None or sequence > stop for sequence in answers)

    async def _first(self, subject: str, start: int) -> int | None:
        try:
            answer = await self._ask(f"STREAM.MSG.GET.{self._stream}", {"seq": start, "next_by_subj": subject})
        except NotFoundError:
            return None
        return int(answer["message"]["seq"])

    async def _ask(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            return await api(self._connection, subject, body, patience=self._patience)
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.err_code == NO_MESSAGE:
                raise NotFoundError(str(fault)) from None
            raise error_of(fault, f"reading {self._stream}") from None

    async def follow(self) -> AsyncGenerator[Record, None]:
        """Events without end, the past first; returns when the reader is closed."""
        while not self._closed:
            try:
                delivery = await self._deliver()
            except ClosedError:
                return
            yield delivery.record

    async def _deliver(self) -> records.Delivery:
        """The next event, however long it takes; :class:`ClosedError` once the reader or its connection is closed."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        while True:
            try:
                message = await self._receive()
                if message.status:
                    self._end_of_pull(message)
                elif f".{self._name}." in message.reply:  # not from a consumer that was given up
                    delivery = records.of_consumer(message)
                    if delivery.consumer_sequence != self._expected:
                        raise NoAnswerFault("the consumer skipped an event")
                    self._expected += 1
                    self._owed -= 1
                    self._next = delivery.record.sequence + 1
                    return delivery
            except (Fault, UnavailableError, TimeoutError) as error:
                logger.debug("reader of %s: %s; continuing at %d", self._stream, error, self._next)
                await self._recover()

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
            async with asyncio.timeout(_SILENCE):
                await self._signal.wait()
        return self._arrived.popleft()

    async def _open_pull(self) -> None:
        self._pull += 1
        self._owed = _BATCH
        request = {"batch": _BATCH, "max_bytes": self._batch_bytes, "expires": int(_EXPIRES * 1e9)}
        subject = f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
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

    async def _recover(self) -> None:
        """A new consumer from the next event on; tries for ever, as the connection does, in steps with a deadline."""
        attempt = 0
        while not self._closed:
            try:
                await self._connection.wait_connected(self._patience)
                self._lost = False
                await self._delete()
                await self._create()
            except UnavailableError as error:
                logger.debug("reader of %s: %s", self._stream, error)
                await asyncio.sleep(backoff(attempt))
                attempt += 1
            else:
                return
        raise ClosedError("this reader is closed")
