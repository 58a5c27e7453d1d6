"""Pulls on a pinned consumer, and the inbox in which their answers arrive.

Owns: the requests (``CONSUMER.MSG.NEXT`` with a priority group, by raw requests: nats-py has no helper for it), and
waiting for what they bring. Must not know: what becomes of an event. Invariant: what was meant for an earlier turn, the
time before a fresh inbox, is never received in a later one.

Source: NATS ADR-42 (priority groups).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from contextlib import suppress
from typing import Any

import orjson

from agentfield.errors import AccessDeniedError
from agentfield.fabric.consumers.durable import GROUP
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault
from agentfield.fabric.jetstream import API, ends_pull
from agentfield.fabric.wire.client import DESCRIPTION
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription

_UNPINNED = "$JS.EVENT.ADVISORY.CONSUMER.UNPINNED"
_WRONG_PIN = 423
PIN = "Nats-Pin-Id"
"""The header of every event: by which pin it came."""


class Pulls:
    """The pulls of one instance of a consumer."""

    def __init__(self, connection: Connection, stream: str, consumer: str) -> None:
        self._connection = connection
        self._consumer = consumer
        self._place = f"{stream}.{consumer}"
        self._next_subject = f"{API}.CONSUMER.MSG.NEXT.{self._place}"
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._messages: deque[Message] = deque()
        self._lost = False
        self.count = 0
        """Pulls sent so far: the number of the last one."""
        self.wake = asyncio.Event()
        """Set when something has arrived, and by whoever wants a wait of the puller's to end."""

    async def open_inbox(self) -> None:
        """A fresh inbox: whatever is still on its way to the old one was meant for an earlier turn."""
        await self.close()
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._messages = deque()
        self._subscription = await self._listen(f"{self._inbox}.*")

    async def hear_of_unpinning(self) -> Subscription | None:
        """Be told, among the other messages, when the active instance is gone; None where that is not permitted."""
        try:
            return await self._listen(f"{_UNPINNED}.{self._place}")
        except AccessDeniedError:
            return None  # then it shows when a pull of ours expires

    async def _listen(self, subject: str) -> Subscription:
        messages = self._messages

        def arrived(message: Message) -> None:
            messages.append(message)
            self.wake.set()

        return await self._connection.listen(subject, arrived)

    async def close(self) -> None:
        """Hear nothing more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def end(self, patience: float) -> bool:
        """Hear nothing more, and say whether an event has come that nobody received: whoever got it holds the pin.

        Takes at most ``patience`` seconds.
        """
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await subscription.drain()
        left, self._messages = self._messages, deque()
        return any(PIN in message.headers for message in left)

    def lost(self) -> None:
        """The connection is gone, and with it what is open: end the wait for it."""
        self._lost = True
        self.wake.set()

    def regained(self) -> None:
        """The connection is there again."""
        self._lost = False

    async def request(self, *, pin: str, batch: int, expires: float, max_bytes: int = 0) -> int:
        """Send a pull; returns its number. One that does not stay open (``expires`` 0) is answered at once."""
        self.count += 1
        body: dict[str, Any] = {"group": GROUP, "batch": batch}
        if expires:
            body["expires"] = int(expires * 1e9)
        else:
            body["no_wait"] = True
        if pin:
            body["id"] = pin
        if max_bytes:
            body["max_bytes"] = max_bytes
        await self._connection.publish(self._next_subject, orjson.dumps(body), reply=f"{self._inbox}.{self.count}")
        return self.count

    async def receive(self, silence: float) -> Message:
        """The next message. Raises a fault when the connection or the consumer is gone, TimeoutError after silence."""
        while not self._messages:
            if self._lost:
                raise NoAnswerFault("the connection was lost")
            self.wake.clear()
            async with asyncio.timeout(silence):
                await self.wake.wait()
        message = self._messages.popleft()
        if message.status == 503:
            raise NoRespondersFault(f"the consumer {self._consumer} is gone")
        return message

    @staticmethod
    def says_unpinned(message: Message) -> bool:
        """Whether a message is not of a pull, but says that the active instance is gone."""
        return message.subject.startswith(_UNPINNED)

    @staticmethod
    def says_other_pin(message: Message) -> bool:
        """Whether a message says that the pin a pull was sent with is not the active instance's."""
        return message.status == _WRONG_PIN

    def ends(self, message: Message, number: int) -> bool:
        """Whether a status ends pull ``number`` in the ordinary way. Raises a fault when it says anything else."""
        if self.says_other_pin(message):
            raise NoAnswerFault("another instance is active")
        if not ends_pull(message):
            description = message.headers.get(DESCRIPTION, "")
            raise NoAnswerFault(f"the server ended the pull: {message.status} {description}")
        return message.subject == f"{self._inbox}.{number}"
