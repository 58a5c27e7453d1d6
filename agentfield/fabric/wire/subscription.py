"""Subscriptions: interest in a subject that outlives the client it was made on.

Owns: what a client is told of it, and how a message reaches whoever asked for it: by a queue and a task, or at once.
Must not know: how a connection is kept, what a message means. Invariant: once ended it is not made again, and nothing
of it is left on a client, also if it ends while it is being made.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from nats import errors as nats_errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as StockSubscription

from agentfield.fabric.wire.client import Client, ExactHeaders, parse_headers
from agentfield.fabric.wire.message import NO_HEADERS, Message

logger = logging.getLogger("agentfield.connection")

_INBOUND_BYTES = 512 * 1024 * 1024

Callback = Callable[[Message], Awaitable[None]]
Taker = Callable[[Message], None]
"""Takes a message over at once, and does nothing that waits or takes long: the task that reads the connection calls."""


class Owner(Protocol):
    """The connection, as a subscription of it sees it."""

    @property
    def state(self) -> str:
        """``connected``, or another."""

    def forget(self, subscription: Subscription) -> None:
        """Do not make this subscription again on a new client."""


class Subscription:
    """Interest in a subject, kept through reconnects and client replacements.

    Made by ``Connection.subscribe``, with a callback that has a queue and a task of its own, or by
    ``Connection.listen``, with a taker that has neither.
    """

    def __init__(
        self,
        owner: Owner,
        subject: str,
        queue: str,
        callback: Callback,
        taker: Taker | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self._owner = owner
        self._subject = subject
        self._queue = queue
        self._callback = callback
        self._taker = taker
        self._exact = exact
        self._stock: StockSubscription | None = None
        self._ended = False
        self.denied = False
        """Whether the server's permissions forbid it."""

    def concerns(self, subject: str) -> bool:
        """Whether the server means this one; nats-py hands on its errors in lower case."""
        return self._subject.lower() == subject

    async def attach(self, client: Client) -> None:
        """Subscribe on a client; called by the connection, again for every new client."""
        callback = self._callback

        async def deliver(msg: Msg) -> None:
            await callback(Message(msg.subject, msg.reply, msg.headers or NO_HEADERS, msg.data))

        stock = await client.subscribe(
            self._subject, queue=self._queue, cb=deliver, pending_msgs_limit=-1, pending_bytes_limit=_INBOUND_BYTES
        )
        if self._ended:  # while this was being done
            await stock.unsubscribe()
            return
        self._stock = stock
        if (taker := self._taker) is not None:

            def take(subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
                headers = parse_headers(block) if block else None
                taker(Message(_name(subject), reply.decode(), headers or NO_HEADERS, payload))

            def take_exactly(subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
                taker(Message(_name(subject), reply.decode(), ExactHeaders(block), payload))

            client.give(stock, take_exactly if self._exact else take)

    async def unsubscribe(self) -> None:
        """Stop receiving at once; what was not yet handed to the callback is dropped. Safe to call twice."""
        await self._end(drain=False)

    async def drain(self) -> None:
        """Stop receiving, and return when everything already delivered has been through the callback."""
        await self._end(drain=True)

    async def _end(self, *, drain: bool) -> None:
        self._ended = True
        self._owner.forget(self)
        stock, self._stock = self._stock, None
        if stock is None:
            return
        try:
            if drain and self._owner.state == "connected":
                await stock.drain()  # type: ignore[no-untyped-call]
            else:
                await stock.unsubscribe()
        except nats_errors.Error as error:
            logger.debug("ending the subscription to %s: %s", self._subject, error)


def _name(subject: bytes) -> str:
    """A subject, whoever published on it: what is no UTF-8 can be told from any subject of ours, and given back."""
    return subject.decode("utf-8", "surrogateescape")
