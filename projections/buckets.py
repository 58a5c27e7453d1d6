"""The buckets that the server fills from the log, for those who check them: another door to the inside of agentfield.

Owns: how a bucket's messages and the log's events are compared, though a bucket has subjects and sequences of its own.
Must not know: what to do about a difference. Nothing here can write a value into a bucket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import NamedTuple

from agentfield.codec import Record, is_delete
from agentfield.errors import InvalidInputError, UnavailableError
from agentfield.fabric.bucket import Bucket
from agentfield.fabric.topology import provision
from agentfield.header import EVENT_HEADER, EVENT_ID, OPERATION
from agentfield.scope import RESOLUTION, ScopeKind, check_scope_kind
from projections.source import Source

KINDS: tuple[ScopeKind, ...] = RESOLUTION
"""The kinds of scopes, each of which has a bucket."""

_ORIGIN = "Nats-Stream-Source"
_STALLED = 30.0
"""Seconds without any progress after which filling a bucket counts as failed."""
_LOOK = 0.1


class Held(NamedTuple):
    """What is held under a key, by the log or by a bucket."""

    subject: str
    """The key's subject in the log."""
    sequence: int
    """The log's sequence of the event."""
    deleted: bool
    digest: bytes
    """Of the event: its value, its id and who wrote it."""


class ScopeBucket:
    """The bucket of one kind of scope, and the part of the log that it is made of."""

    def __init__(self, source: Source, kind: str) -> None:
        self.kind = check_scope_kind(kind)
        self._fabric = source.fabric
        topology = source.fabric.topology
        self._spec = topology.buckets[RESOLUTION.index(self.kind)]
        (transform,) = self._spec.config["sources"][0]["subject_transforms"]
        self._ours, self._theirs = transform["src"].removesuffix(">"), transform["dest"].removesuffix(">")
        self._filter: str = transform["src"]
        self._bucket = Bucket(source.fabric.connection, self._spec.name.removeprefix("KV_"))

    @property
    def name(self) -> str:
        """The bucket's name, as clients know it."""
        return self._bucket.name

    async def events(self, until: int) -> AsyncIterator[Held]:
        """What the log says, event after event, up to sequence ``until``."""
        async for record in self._fabric.log.read([self._filter], stop=until):
            yield Held(record.subject, record.sequence, is_delete(record), _digest(record))

    async def entries(self) -> AsyncIterator[Held]:
        """What the bucket holds. Something that is not from the log has the sequence 0."""
        async for record in self._bucket.read():
            yield self._held(record)

    async def logged(self, subject: str) -> Held | None:
        """What the log says of a subject now."""
        (record,) = await self._fabric.log.last([subject])
        if record is None:
            return None
        return Held(record.subject, record.sequence, is_delete(record), _digest(record))

    async def entry(self, subject: str) -> Held | None:
        """What the bucket holds for a subject now."""
        record = await self._bucket.last(f"{self._theirs}{subject.removeprefix(self._ours)}")
        return None if record is None else self._held(record)

    async def recreate(self) -> None:
        """Remove the bucket and have the server fill it anew; returns when it has come to where the log is now.

        Memory itself never reads buckets; other clients of it see it fill. Raises :class:`UnavailableError` if it does
        not fill; then it may be there in part, or not at all, until the next time anything connects.
        """
        await self._bucket.remove()
        await provision(self._fabric.connection, self._fabric.topology)
        newest = await self._fabric.log.last_of(self._filter)
        if newest is None:
            return
        loop = asyncio.get_running_loop()
        origin, changed = 0, loop.time()
        while origin < newest.sequence:
            record = await self._bucket.last(f"{self._theirs}>")
            now = 0 if record is None else self._held(record).sequence
            if now > origin:
                origin, changed = now, loop.time()
            elif loop.time() > changed + _STALLED:
                raise UnavailableError(
                    f"bucket {self.name} has come to event {origin} of {newest.sequence}, and no further for "
                    f"{_STALLED:.0f} s: see whether the server is well, and rebuild it again"
                )
            else:
                await asyncio.sleep(_LOOK)

    def _held(self, record: Record) -> Held:
        subject = f"{self._ours}{record.subject.removeprefix(self._theirs)}"
        origin = record.headers.get(_ORIGIN, "").split()
        sequence = int(origin[1]) if len(origin) > 1 and origin[1].isdigit() else 0
        return Held(subject, sequence, is_delete(record), _digest(record))


def kinds_of(text: str) -> tuple[ScopeKind, ...]:
    """The kinds that the part after ``state`` names; all, if it is empty. Raises InvalidInputError."""
    if not text:
        return KINDS
    if text not in KINDS:
        raise InvalidInputError(f"there is no bucket of scope {text!r}: one of {', '.join(KINDS)}")
    return (check_scope_kind(text),)


def _digest(record: Record) -> bytes:
    digest = blake2b(record.payload, digest_size=16)
    for name in (EVENT_ID, EVENT_HEADER, OPERATION):
        digest.update(b"\0" + record.headers.get(name, "").encode())
    return digest.digest()
