"""The live log and its seals, as sealing and verifying take them.

Owns: reading messages exactly as stored, and the stream of seals: reading them, and storing one on the condition that
the one before it is still the last. Must not know: what a seal says.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from agentfield.audit.chain import Stored
from agentfield.audit.seal import SignedSeal
from agentfield.audit.verifying import Extent
from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.fabric.appending import Conflict
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.log import Log
from agentfield.fabric.reader import Reader
from agentfield.fabric.wire.client import ExactHeaders
from agentfield.header import EVENT_ID
from agentfield.scope import Scope
from agentfield.subject import Subjects


class Live:
    """The log of one namespace and the seals over it, on the server."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._seals = Log(fabric.connection, fabric.topology, timeout=fabric.log.timeout, of=fabric.topology.seals)
        self.stream = fabric.log.stream
        self.subject = f"{fabric.topology.namespace}.seals.seal"

    def now(self) -> int:
        """The server's time in nanoseconds since the epoch."""
        return self._fabric.log.now()

    async def extent(self) -> Extent:
        """What the server says of the log now."""
        state = await self._fabric.log.state()
        return Extent(self.stream, self._fabric.log.created, int(state["first_seq"]), int(state["last_seq"]))

    async def read(self, start: int, stop: int, filters: Sequence[str] = ()) -> AsyncGenerator[Stored, None]:
        """The messages that the log holds, with sequences from ``start`` to ``stop``, which it has reached."""
        if start > stop:
            return
        async with self.reader(start, filters) as reader:
            async for record in reader.until(stop):
                yield stored_of(record)

    async def history(self, start: int, stop: int, filters: Sequence[str] = ()) -> AsyncGenerator[Stored, None]:
        """The same; what was trimmed off the log comes from its archive, if one is at hand."""
        async with aclosing(self._fabric.log.read(filters, start=start, stop=stop, exact=True)) as records:
            async for record in records:
                yield stored_of(record)

    def reader(self, start: int, filters: Sequence[str] = ()) -> Reader:
        """A walk over the messages of the log from ``start`` on, which :func:`stored_of` gives as they are stored."""
        log = self._fabric.log
        return Reader(log.connection, log.stream, filters, start=start, exact=True, patience=log.timeout)

    # -- seals --------------------------------------------------------------------------------------------------------

    async def last_seal(self) -> SignedSeal | None:
        """The seal that was stored last, by the word of the leader; None if there is none."""
        record = await self._seals.last_of(self.subject)
        return None if record is None else _signed_seal(record)

    async def seal(self, number: int) -> SignedSeal | None:
        """The seal with a number, by the word of the leader; None if there is none."""
        record = await self._seals.at(number)
        return None if record is None else _signed_seal(record)

    async def seals(self, last: int) -> AsyncGenerator[SignedSeal, None]:
        """The seals up to the one with the number ``last``, which must be there, oldest first.

        Ask for the last seal first, then for the log's extent: so the log reaches at least as far as the seals.
        """
        async with aclosing(self._seals.read([], stop=last)) as stored:
            async for record in stored:
                yield _signed_seal(record)

    async def store(self, seal: SignedSeal) -> bool:
        """Store a seal after the one before it. False if there is another in its place; nothing was stored then.

        Raises :class:`UnavailableError` (nothing was stored) and :class:`OutcomeUnknownError`.
        """
        headers = {**seal.headers, EVENT_ID: f"seal-{seal.sequence}-{seal.hash.hex()[:32]}"}
        try:
            await self._seals.append(self.subject, seal.body, headers, expected=seal.sequence - 1)
        except Conflict:
            return False
        return True


def stored_of(record: Record) -> Stored:
    """The message that a reader gave which keeps headers as they are stored."""
    headers = record.headers
    block = headers.block if isinstance(headers, ExactHeaders) else b""
    return Stored(record.subject, record.sequence, record.timestamp, block, record.payload)


def place_of(subjects: Subjects, subject: str) -> tuple[Scope, str] | None:
    """The scope and key whose subject this is; None if it is no key's: anybody may have put it into the log."""
    try:
        return subjects.parse(subject)
    except InvalidInputError:
        return None


def record_of(stored: Stored) -> Record:
    """The message as the rest of agentfield takes it."""
    return Record(stored.subject, stored.sequence, stored.timestamp, ExactHeaders(stored.headers), stored.payload)


def _signed_seal(record: Record) -> SignedSeal:
    return SignedSeal.of(record.sequence, record.headers, record.payload)
