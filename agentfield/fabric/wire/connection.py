"""One connection to NATS that outlives every outage, says in which state it is, and never goes over to a stranger.

Owns: the nats-py client (it is replaced if it gives up), what it knows its server by, which subscriptions there are
(they are made again on a new client), and the rule that a request is only handed to the client while it is connected,
so that "nothing was sent" stays a fact one can rely on. Must not know: streams, keys, agents, and how an answer finds
its request. Invariant: no exception of nats-py leaves this module; every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from nats import errors as nats_errors

from agentfield.errors import (
    AccessDeniedError,
    AgentFieldError,
    ClosedError,
    IncompatibleServerError,
    UnavailableError,
)
from agentfield.fabric.faults import ConnectionLostFault
from agentfield.fabric.wire.addresses import check_urls, without_password
from agentfield.fabric.wire.client import Client
from agentfield.fabric.wire.dialing import Told, dial, is_refusal
from agentfield.fabric.wire.message import HEADERS_AT_MOST, Message, check_size
from agentfield.fabric.wire.recognising import Find, Proof, Recognition, StrangerError
from agentfield.fabric.wire.requests import Requests
from agentfield.fabric.wire.subscription import Callback, Subscription, Taker
from agentfield.server_version import MINIMUM_SERVER, is_supported

logger = logging.getLogger("agentfield.connection")

ConnectionState = Literal["connected", "reconnecting", "closed"]
Listener = Callable[[ConnectionState], None]

_LOOK = 2.0
"""Seconds between looks at whether the client's own tasks still live."""
_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"?([^\"\s]+)", re.IGNORECASE)


class Connection:
    """A live connection to a NATS server or cluster. Open with :meth:`open`; close with :meth:`aclose`."""

    def __init__(self, urls: Sequence[str], *, namespace: str, name: str, find: Find | None = None) -> None:
        self._urls = list(urls)
        self._recognition = Recognition(find)
        self.namespace = namespace
        self.name = name
        self.phase = random.random()
        """Between 0 and 1, by chance: when in a period is the turn of all who use this connection; other processes have
        another."""
        self._client: Client | None = None
        self._state: ConnectionState = "reconnecting"
        self._connected = asyncio.Event()
        self._listeners: list[Listener] = []
        self._denied: list[Callable[[str], None]] = []
        self._guests: list[Callable[[], Awaitable[None]]] = []
        self._subscriptions: set[Subscription] = set()
        self._requests = Requests(self.publish)
        self._last_error: Exception | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._given_up = asyncio.Event()

    # -- life ---------------------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        url: str | Sequence[str],
        *,
        namespace: str,
        name: str,
        timeout: float = 5.0,
        find: Find | None = None,
    ) -> Connection:
        """Connect within ``timeout`` seconds, and keep connected until :meth:`aclose`.

        ``find`` says, before every try, where the server is by now and what it is called: then no other is used.
        Raises :class:`UnavailableError` when no server answers, :class:`AccessDeniedError` when it refuses the
        credentials, :class:`IncompatibleServerError` when it is too old, :class:`InvalidInputError` for an unusable
        URL. Nothing is left running after a failure.
        """
        urls = [part.strip() for part in url.split(",")] if isinstance(url, str) else list(url)
        check_urls(urls)
        connection = cls(urls, namespace=namespace, name=name, find=find)
        try:
            connection._adopt(await connection._connect(timeout))
            connection._check_version(connection.server_version)
            await connection.listen(connection._requests.inbox, connection._requests.take)
        except BaseException:
            await connection.aclose()
            raise
        connection._supervisor = asyncio.create_task(connection._supervise(), name=f"agentfield connection {name}")
        return connection

    async def aclose(self) -> None:
        """Flush what was sent, close, and fail what still waits for an answer. Idempotent."""
        if self._state == "closed":
            return
        guests, self._guests = self._guests, []
        await asyncio.gather(*(close() for close in guests), return_exceptions=True)
        self._set_state("closed")
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await self._shut(client, flush=True)
        self._requests.fail(ConnectionLostFault(f"the connection {self.name!r} was closed"))
        self._subscriptions.clear()

    async def _shut(self, client: Client, *, flush: bool) -> None:
        try:
            if flush and client.is_connected:
                await client.flush(timeout=2)
        except (nats_errors.Error, OSError) as error:
            logger.debug("flushing %s before closing: %s", self.name, error)
        try:
            await client.close()
        except (nats_errors.Error, OSError) as error:
            logger.debug("closing %s: %s", self.name, error)

    async def _connect(self, timeout: float) -> Client:
        """A connected client with every subscription made. It is not in use before it is adopted."""
        client = Client(self._recognition)
        self._last_error = None

        def on_closed() -> None:
            self._on_down(client)
            if client is self._client:
                self._given_up.set()

        told = Told(self._note_error, partial(self._on_down, client), partial(self._on_up, client), on_closed)
        try:
            await dial(client, self._urls, told, name=self.name, where=lambda: self._where, timeout=timeout)
            for subscription in list(self._subscriptions):
                await subscription.attach(client)
        except BaseException:
            await self._shut(client, flush=False)
            raise
        return client

    def _adopt(self, client: Client) -> None:
        """Use this client from now on. It may have lost its connection again: then its callbacks say how it goes on."""
        self._client = client
        self._given_up.clear()
        if client.is_closed:
            self._given_up.set()
        elif client.is_connected:
            self._on_up(client)

    @property
    def _where(self) -> str:
        return ", ".join(without_password(url) for url in self._addresses)

    @property
    def _addresses(self) -> Sequence[str]:
        return self._urls if self._recognition.url is None else [self._recognition.url]

    async def _supervise(self) -> None:
        """Replace the client when nats-py has given up on it (for instance after a server's -ERR), for ever."""
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    await self._given_up.wait()
            except TimeoutError:
                if not _is_stuck(self._current()):
                    continue
            old = self._current()
            logger.warning(
                "connection %s: the client gave up (%s); connecting anew", self.name, old.last_error or self._last_error
            )
            self._on_down(old)
            await self._shut(old, flush=False)
            try:
                self._adopt(await self._connect(10.0))
            except (AgentFieldError, nats_errors.Error, OSError) as error:
                logger.warning("connection %s: %s; trying again", self.name, error)
                self._given_up.set()
                await asyncio.sleep(1.0)

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ConnectionState:
        """Connected, reconnecting (for as long as it takes), or closed for good."""
        return self._state

    @property
    def hears(self) -> bool:
        """Whether an answer can come. At the end of an event loop it cannot: what reads was cancelled with the rest."""
        return self._state == "connected" and not _is_stuck(self._current())

    @property
    def client(self) -> Client:
        """The nats-py client of the moment, for modules of ``fabric/`` alone. It can be replaced after an outage."""
        return self._current()

    @property
    def url(self) -> str:
        """The server in use, or the first one configured while there is none; without password."""
        connected = self._client.connected_url if self._client is not None else None
        return without_password(connected.geturl() if connected is not None else self._addresses[0])

    @property
    def server_version(self) -> str:
        """The version of the server in use, e.g. ``2.15.1``."""
        return str(self.server_info.get("version", ""))

    @property
    def server_info(self) -> Mapping[str, Any]:
        """What the server said of itself when we connected (INFO)."""
        return self._current()._server_info

    @property
    def clustered(self) -> bool:
        """Whether the server belongs to a cluster."""
        return bool(self.server_info.get("cluster"))

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload that one message may have."""
        return self._current().max_payload

    def know_by(self, proof: Proof) -> None:
        """After every reconnect, have the server give this proof before anything else is sent to it.

        The one in use is the right one. While another answers, the connection is ``reconnecting``.
        """
        self._recognition.know_by(proof, self.server_info)

    def on_state(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every new state; returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def on_denied(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` with the subject, lowered, of each message that the server did not permit to be published.

        Returns a function that ends this.
        """
        self._denied.append(listener)
        return lambda: self._denied.remove(listener) if listener in self._denied else None

    def before_close(self, close: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Call ``close`` before closing, for what else would stay on the server; returns a function that ends this."""
        self._guests.append(close)
        return lambda: self._guests.remove(close) if close in self._guests else None

    async def wait_connected(self, timeout: float) -> None:
        """Return once connected; UnavailableError after ``timeout`` seconds, ClosedError if closed."""
        if self._connected.is_set() and self._state == "connected":
            return
        if self._state != "closed":
            try:
                async with asyncio.timeout(timeout):
                    await self._connected.wait()
            except TimeoutError:
                reason = f" (last error: {self._last_error})" if self._last_error and str(self._last_error) else ""
                raise UnavailableError(
                    f"the NATS server at {self._where} is away and did not come back within {timeout:g} s{reason}; "
                    "nothing was sent; the connection goes on trying"
                ) from None
        if self._state == "closed":
            raise ClosedError(f"the connection {self.name!r} is closed")

    def _current(self) -> Client:
        if self._client is None:
            raise ClosedError(f"the connection {self.name!r} is closed")
        return self._client

    def _set_state(self, state: ConnectionState) -> None:
        if state == self._state or self._state == "closed":
            return
        self._state = state
        if state == "reconnecting":
            self._connected.clear()
        else:
            self._connected.set()
        for listener in list(self._listeners):
            listener(state)

    def _on_up(self, client: Client) -> None:
        if client is not self._client or self._state == "closed":
            return
        was = self._state
        self._last_error = None
        self._set_state("connected")
        if was == "reconnecting" and self._supervisor is not None:
            logger.info("connection %s: connected to %s", self.name, self.url)

    def _on_down(self, client: Client) -> None:
        if client is not self._client or self._state == "closed":
            return
        if self._state == "connected":
            logger.warning(
                "connection %s: lost the server at %s; reconnecting", self.name, without_password(self._addresses[0])
            )
        self._set_state("reconnecting")
        self._requests.fail(ConnectionLostFault("the connection to the server was lost"))

    def _note_error(self, error: Exception) -> None:
        last, self._last_error = self._last_error, error
        if isinstance(error, StrangerError):
            if str(error) != str(last):  # each of the many tries finds the same
                logger.warning("connection %s: %s: %s; waiting for the right one", self.name, self._where, error)
            return
        denied = _DENIED.search(str(error))
        if denied is None:
            level = logging.WARNING if is_refusal(error) else logging.DEBUG
            logger.log(level, "connection %s: %r", self.name, error)
            return
        what, subject = denied.group(1).lower(), denied.group(2).lower()  # nats-py has lowered the subject anyway
        logger.warning("connection %s: the server denies %s to %s", self.name, what, subject)
        if what == "subscription":
            for subscription in self._subscriptions:
                subscription.denied = subscription.denied or subscription.concerns(subject)
            return
        self._requests.deny(subject)
        for listener in list(self._denied):
            listener(subject)

    def _check_version(self, version: str) -> None:
        if not is_supported(version):
            raise IncompatibleServerError(found=version, needed=MINIMUM_SERVER, server=self.url)

    # -- traffic ------------------------------------------------------------------------------------------------------

    async def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Hand a message to the connection; no answer is awaited. :class:`UnavailableError` while disconnected."""
        if self._state != "connected":
            await self.wait_connected(0.0)
        client = self._current()
        if len(payload) + HEADERS_AT_MOST > client.max_payload:
            check_size(payload, headers, client.max_payload)
        try:
            await client.publish(subject, payload, reply=reply, headers=headers)
        except (nats_errors.Error, OSError) as error:
            raise UnavailableError(f"publishing to {subject!r}: {_text(error)}") from None

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has processed everything published before; raises :class:`UnavailableError`."""
        client = self._current()
        with self._requests.failing() as lost:  # so that a lost connection ends the wait
            flushing = asyncio.ensure_future(client.flush(timeout=timeout))  # type: ignore[arg-type]  # float seconds work
            try:
                waited: set[asyncio.Future[Any]] = {flushing, lost}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                await (flushing if flushing.done() else lost)
            except (nats_errors.Error, OSError, ConnectionLostFault) as error:
                raise UnavailableError(f"flushing: {_text(error)}") from None
            finally:
                flushing.cancel()
                await asyncio.gather(flushing, return_exceptions=True)

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, *, timeout: float
    ) -> Message:
        """Send a request and return its one answer.

        Raises :class:`UnavailableError` (no connection within ``timeout`` seconds: nothing was sent),
        :class:`NoRespondersFault`, :class:`NoAnswerFault`, :class:`ConnectionLostFault`.
        """
        if self._state != "connected":
            await self.wait_connected(timeout)
        answer = await self._requests.exchange(subject, payload, headers, timeout, None)
        return answer[0]

    async def request_many(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        timeout: float,
        last: Callable[[Message], bool],
    ) -> list[Message]:
        """Send a request and collect answers up to and including the one for which ``last`` is true."""
        if self._state != "connected":
            await self.wait_connected(timeout)
        return await self._requests.exchange(subject, payload, headers, timeout, last)

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call ``callback`` with every message on ``subject``, one after the other, until the subscription ends.

        With a ``queue`` name, each message goes to one member of that queue group. Kept through reconnects. On return
        the server knows of it. Raises :class:`AccessDeniedError`, :class:`UnavailableError`; nothing is left then.
        """
        return await self._subscribe(Subscription(self, subject, queue, callback), subject)

    async def listen(self, subject: str, taker: Taker, *, exact: bool = False) -> Subscription:
        """The same with a function that takes each message over at once, without a queue and a task in between.

        For what is many and quickly put aside: at a third of the cost. With ``exact``, every message that is taken has
        its headers as :class:`ExactHeaders`, and in a subject that is not UTF-8 the other bytes are escaped as Python's
        ``surrogateescape`` does it.
        """

        async def callback(message: Message) -> None:
            if not exact:  # else it came before the taker was known, and is not as promised: as good as lost on the way
                taker(message)

        return await self._subscribe(Subscription(self, subject, "", callback, taker, exact=exact), subject)

    async def _subscribe(self, subscription: Subscription, subject: str) -> Subscription:
        await self.wait_connected(5.0)
        self._subscriptions.add(subscription)
        try:
            await subscription.attach(self._current())
            await self.flush()
            if subscription.denied:
                raise AccessDeniedError(f"the server does not permit subscribing to {subject!r}", subject=subject)
        except (nats_errors.Error, OSError) as error:
            self.forget(subscription)
            raise UnavailableError(f"subscribing to {subject!r}: {_text(error)}") from None
        except BaseException:
            await subscription.unsubscribe()
            raise
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Do not make this subscription again on a new client (called by the subscription itself)."""
        self._subscriptions.discard(subscription)


def _is_stuck(client: Client) -> bool:
    """Whether the client is closed, or lacks a task that it cannot do without; nats-py does not look after them."""
    if client.is_connected:
        return client._reading_task is None or client._reading_task.done()
    return client.is_closed or client._reconnection_task is None or client._reconnection_task.done()


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
