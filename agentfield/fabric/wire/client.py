"""nats-py's client with the paths that every message takes made cheaper, which knows a stranger from its server.

Owns: what is replaced of nats-py: how bytes become messages (``parser``), how headers are read and written, how a
message for one of our subscriptions reaches it, and what a server has to say before it is used (``recognising``); and
two traps in its pings. Of messages, what comes out is the same; ``tests/unit/test_client.py`` and
``test_parser.py`` compare both, and fail if a new nats-py renames a hook, so the cap on its version in
``pyproject.toml`` is lifted only after a look here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlparse

from nats import errors as nats_errors
from nats.aio.client import Client as StockClient
from nats.aio.client import Srv
from nats.aio.subscription import Subscription

from agentfield.fabric.wire.parser import Parser, Sink
from agentfield.fabric.wire.recognising import Recognition

logger = logging.getLogger("agentfield.connection")

STATUS = "Status"
DESCRIPTION = "Description"

_BLANK = " \t\n\r\x0b\x0c"
"""What surrounds a name or a value without being part of it: ASCII's blanks, and no others."""
_USUAL = frozenset(
    {
        "Agentfield-Context", "Agentfield-Event", "KV-Operation", "Nats-Batch-Commit", "Nats-Batch-Id",
        "Nats-Batch-Sequence", "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject",
        "Nats-Last-Sequence", "Nats-Msg-Id", "Nats-Num-Pending", "Nats-Pin-Id", "Nats-Schedule", "Nats-Schedule-Target",
        "Nats-Sequence", "Nats-Stream", "Nats-Subject", "Nats-Time-Stamp", "Nats-UpTo-Sequence", "traceparent",
    }
)  # fmt: skip
"""Headers whose names need no second look, neither coming nor going. Any other is only slower."""
_PROOF = b"0"
"""The id, on the wire, of the subscription to a server's proof; nats-py counts its own from 1."""
_PROOF_WITHIN = 2.0
"""Seconds for the proof: a healthy server takes a millisecond."""


def parse_headers(block: bytes) -> dict[str, str] | None:
    """Parse a NATS header block (``NATS/1.0[ status[ description]]`` and ``Name: value`` lines, CRLF between).

    Returns None when there is neither a status nor a header. A line that is no header is skipped, the last of several
    headers of one name counts, and malformed UTF-8 becomes U+FFFD, as in nats-py.
    """
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    headers: dict[str, str] = {}
    if len(first) > 8:
        status, _, description = first[9:].partition(" ")
        if status.isdigit():
            headers[STATUS] = status
        if description:
            headers[DESCRIPTION] = description
    for line in lines:
        name, colon, value = line.partition(": ")
        if colon and name in _USUAL and value == value.strip():
            headers[name] = value
        elif line:
            text, colon, value = line.partition(":")
            name = text.strip(_BLANK)
            if colon and name.isascii() and not any(character.isspace() for character in name):
                headers[name] = value.strip(_BLANK)
    return headers or None


class ExactHeaders(Mapping[str, str]):
    """Headers with the block they came in, byte for byte as the server stored it; parsed only once one is asked for."""

    __slots__ = ("_parsed", "block")

    def __init__(self, block: bytes) -> None:
        self.block = block
        self._parsed: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        if self._parsed is None:
            self._parsed = (parse_headers(self.block) if self.block else None) or {}
        return self._parsed


def publication(subject: str, reply: str, payload: bytes, headers: Mapping[str, str] | None) -> bytes | None:
    """The command that publishes a message. None where there is something to mend or refuse: nats-py knows what."""
    if subject.split() != [subject] or (reply and reply.split() != [reply]):
        return None
    if headers is None:
        return f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"
    lines = "".join([f"{name}: {value.strip()}\r\n" for name, value in headers.items()])
    count = len(headers)
    if not headers.keys() <= _USUAL or lines.count("\r") != count or lines.count("\n") != count:
        return None
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    sizes = f"{len(block)} {len(block) + len(payload)}"
    return b"".join((f"HPUB {subject} {reply} {sizes}\r\n".encode(), block, payload, b"\r\n"))


class Client(StockClient):
    """A nats-py client for :class:`~agentfield.fabric.wire.connection.Connection` alone."""

    def __init__(self, recognition: Recognition | None = None) -> None:
        super().__init__()
        self._recognition = recognition or Recognition()
        self._ps = Parser(self)
        self.sinks: dict[bytes, Sink] = {}
        """Who takes the messages of a subscription by a plain call, by the subscription's id on the wire."""

    def give(self, subscription: Subscription, sink: Sink) -> None:
        """From now on, call ``sink`` with the subscription's messages, instead of queueing them for its callback."""
        self.sinks[b"%d" % subscription._id] = sink

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self.sinks.pop(b"%d" % sid, None)

    async def _connect_to_server(self, s: Srv) -> None:
        url = await self._recognition.locate()
        if url is not None:
            s.uri = urlparse(url)
        await super()._connect_to_server(s)

    def _connect_command(self) -> bytes:
        # nats-py takes user, password and token from the URL as they stand; what a URL may not hold is escaped there.
        command = super()._connect_command()
        if self._current_server is None or "%" not in self._current_server.uri.netloc:
            return command
        operation, options = command.split(maxsplit=1)
        said = json.loads(options)
        for part in said.keys() & {"user", "pass", "auth_token"}:
            said[part] = unquote(said[part])
        return b"%s %s\r\n" % (operation, json.dumps(said, sort_keys=True).encode())

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection:
            self._recognition.check_name(info)
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        # What was handed over before the connection was lost still waits to be written: not to a stranger. Nor are the
        # other servers that a stranger names of any use.
        waiting, size, self._pending, self._pending_data_size = self._pending, self._pending_data_size, [], 0
        pool = list(self._server_pool)
        try:
            await super()._process_connect_init()
            await self._recognition.check_proof(self._ask, self._server_info)
        except (nats_errors.Error, OSError):
            self._server_pool = pool
            await self._hang_up()
            raise
        finally:
            self._pending[:0] = waiting
            self._pending_data_size += size

    async def _ask(self, subject: str) -> bytes | None:
        """The answer to a request that goes out before anything that waits; None if there is none in time."""
        assert self._transport is not None
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def take(_subject: bytes, _reply: bytes, _block: bytes, payload: bytes) -> None:
            if not answered.done():
                answered.set_result(payload)

        inbox = f"_INBOX.{secrets.token_hex(11)}"
        self.sinks[_PROOF] = take
        sid = _PROOF.decode()
        try:
            self._transport.write(f"SUB {inbox} {sid}\r\nUNSUB {sid} 1\r\nPUB {subject} {inbox} 0\r\n\r\n".encode())
            async with asyncio.timeout(_PROOF_WITHIN):
                await self._transport.drain()  # type: ignore[no-untyped-call]
                return await answered
        except TimeoutError:
            return None
        finally:
            del self.sinks[_PROOF]

    async def _hang_up(self) -> None:
        """End a connection that was just made, with the tasks that serve it: nats-py begins them for each anew."""
        tasks = [self._reading_task, self._ping_interval_task, self._flusher_task]
        left = [task for task in tasks if task is not None and not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
            with suppress(OSError):
                await self._transport.wait_closed()  # type: ignore[no-untyped-call]
        self._ps.reset()

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        return parse_headers(headers) if headers else None

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # What was still to be written cannot be written on a connection that the server has reset. The stock method
        # stops there, in a task that nobody awaits, and tells nobody that the client is closed.
        try:
            await super()._close(status, do_cbs)
        except OSError as error:
            logger.debug("closing: %s", error)
            for callback in (self._disconnected_cb, self._closed_cb) if do_cbs else ():
                if callback is not None:
                    await callback()

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # The stock method writes the ping past what still waits to be written, so its answer proves nothing: a drain
        # would let go of a subscription that the server goes on serving, and lose what arrives in between.
        if self.is_connected and self._pending and self._transport is not None:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(pending)
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        # A flush that timed out or was cancelled leaves its future behind, done. The stock method sets its result all
        # the same, which ends the task that reads: the connection would be deaf until it is found stale.
        if self._pongs and self._pongs[0].done():
            del self._pongs[0]
            self._pongs_received += 1
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand a message to the connection, as nats-py does; what it would refuse or mend is left to it."""
        usual = self._status == StockClient.CONNECTED and len(payload) <= self._max_payload
        command = publication(subject, reply, payload, headers) if usual else None
        if command is None:
            await super().publish(subject, payload, reply, headers)
            return
        await self._send_command(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()
