"""The stream of bytes from the server, cut into messages, for a third of what nats-py's parser takes to do it.

Owns: recognising whole ``MSG`` and ``HMSG`` frames and handing them to whoever hears the subscription: at once, by a
plain call, where it has a sink; by nats-py's own way (a queue and a task) where not. Everything else that a server says
goes to nats-py's parser, line by line. Must not know: what a message means. Invariant: however the stream is divided
into pieces, the same frames come out in the same order as nats-py's parser gives, and the same error for what is no
protocol; ``tests/unit/test_parser.py`` compares both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from nats.protocol.parser import Parser as StockParser

if TYPE_CHECKING:
    from agentfield.fabric.wire.client import Client

logger = logging.getLogger("agentfield.connection")

Sink = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes a message's subject, reply subject, header block and payload, empty where there is none. It must not wait."""

_Frame = tuple[int, bytes, bytes, bytes, bytes | None]
"""The arguments of nats-py's ``_process_msg``."""
_CRLF = b"\r\n"


class Parser(StockParser):
    """The parser of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        super().__init__(client)  # it resets, too

    def reset(self) -> None:
        """Forget what has come so far: another connection begins."""
        super().reset()
        self._data = b""
        self._at = 0
        self._pieces: list[bytes] = []
        self._lacking = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take in the next piece of the stream and handle every frame that is now complete."""
        self._pieces.append(data)
        self._lacking -= len(data)
        if self._lacking > 0:  # of a large message: its pieces are not worth joining before they are all here
            return
        rest, pieces, self._pieces = self._data[self._at :], self._pieces, []
        self._data = b"".join((rest, *pieces))
        self._at = self._lacking = 0
        while (item := self._next()) is not None:
            if isinstance(item, bytes):
                await super().parse(item)
            else:
                await self._client._process_msg(*item)  # type: ignore[arg-type]  # None where it has no headers

    def _next(self) -> _Frame | bytes | None:
        """The next frame or line that is for nats-py, everything before it handled; None when more has to come."""
        data, at, sinks = self._data, self._at, self._client.sinks
        while (end := data.find(_CRLF, at)) >= 0:
            begin = end + 2
            fields = data[at:end].split()
            try:
                if fields[0] == b"HMSG":
                    _, subject, sid, *optional, split_text, size_text = fields
                    middle = begin + int(split_text)
                elif fields[0] == b"MSG":
                    _, subject, sid, *optional, size_text = fields
                    middle = begin
                else:
                    raise ValueError
                (reply,) = optional or (b"",)
                stop = begin + int(size_text)
                sink = sinks.get(sid)
                number = 0 if sink is not None else int(sid)
            except (ValueError, IndexError):  # another line of the protocol, or none of it: nats-py knows
                self._at = begin
                return data[at:begin]
            if stop + 2 > len(data):
                self._lacking = stop + 2 - len(data)
                break
            block, payload = data[begin:middle], data[middle:stop]
            at = stop + 2
            if sink is None:
                self._at = at
                return number, subject, reply, payload, block or None
            try:
                sink(subject, reply, block, payload)
            except Exception:  # one message must not end the task that reads all others
                logger.exception("a message on %s was not understood", subject.decode(errors="replace"))
        self._at = at
        return None
