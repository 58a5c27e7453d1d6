"""Objects: values too large for one message, in an object store (ADR-20) that any NATS client can read.

Owns: the layout of the store's messages, storing an object in chunks with a bounded number of them in flight, reading
it back verified, taking it away. Must not know: keys, events, who refers to an object. Invariants: an object's name is
used once, so its content never changes; what ``put`` has returned is whole and durable; what ``get`` returns is what
the reference says, to the bit. Whatever goes wrong on the way leaves an announced, incomplete object, which nobody is
given and which ``infos`` shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from agentfield.codec import Record
from agentfield.errors import AgentFieldError, UnavailableError
from agentfield.execution import new_id
from agentfield.fabric import records
from agentfield.fabric.faults import Fault, error_of
from agentfield.fabric.jetstream import API, PATIENCE, api, patiently
from agentfield.fabric.leader import leader_get
from agentfield.fabric.reader import Reader
from agentfield.fabric.topology import Topology
from agentfield.fabric.upload import ATTEMPT, IN_FLIGHT, OutOfOrderFault, Upload, chunks_subject, meta_subject
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message
from agentfield.reference import LARGE, Reference, digest_text, is_object_name

logger = logging.getLogger("agentfield.objects")

_TRANSFERS = 4
"""Objects on their way at once in each direction; more of them wait, so that what is in flight stays bounded."""
_TRIES = 3
"""Times that an upload is begun anew because its chunks got out of order, as they may when a leader changes."""
_CLEANING = 2.0
"""Seconds that taking an unfinished object away may take; else it is left to be collected."""


_Chunks = Callable[[str, int], Awaitable[list[Record]]]
"""The next messages of a subject from a sequence on; none where there is none."""


class MissingObject(Fault):
    """The leader of the store knows no chunk of it."""


class CorruptObject(Fault):
    """What is stored is not what the reference says."""


class ObjectInfo(NamedTuple):
    """An object as the store describes it: complete, or only announced."""

    name: str
    sequence: int
    """Of the description's message in the store's stream; later descriptions have higher ones."""
    timestamp: int
    """When it was described so: nanoseconds since the epoch."""
    complete: bool
    about: Mapping[str, str]
    """What ``put`` was told; empty for what others have put into the store."""


class Objects:
    """The object store of one namespace."""

    def __init__(self, connection: Connection, topology: Topology, *, timeout: float = PATIENCE) -> None:
        self._connection = connection
        self._stream = topology.objects.name
        self.bucket = topology.objects_bucket
        self._timeout = timeout
        self._sending = asyncio.Semaphore(_TRANSFERS)
        self._receiving = asyncio.Semaphore(_TRANSFERS)
        self.threshold = LARGE
        """Bytes of JSON above which a value becomes an object."""

    # -- storing ------------------------------------------------------------------------------------------------------

    async def put(self, content: bytes, *, description: str, about: Mapping[str, str]) -> Reference:
        """Store an object; on return it is whole and durable.

        ``about`` is kept with it, from before its first byte. Takes as long as it makes progress: the timeout is that
        of each chunk. Raises :class:`UnavailableError` and what the server's refusals mean; what was stored by then is
        taken away again, or left incomplete if that fails too, or if this is cancelled.
        """
        async with self._sending:
            for _ in range(_TRIES):
                name = new_id()
                upload = Upload(self._connection, self._stream, self.bucket, name, timeout=self._timeout)
                try:
                    return await upload.run(content, description, about)
                except OutOfOrderFault as fault:
                    logger.debug("object %s: %s; storing it anew", name, fault)
                    await self._abandon(name)
                except AgentFieldError:
                    await self._abandon(name)
                    raise
        raise UnavailableError(f"storing {len(content):,} bytes: the server mixed up their order {_TRIES} times")

    async def _abandon(self, name: str) -> None:
        try:
            await self.remove(name, patience=_CLEANING)
        except AgentFieldError as error:
            logger.debug("object %s stays incomplete, until it is collected: %s", name, error)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, reference: Reference) -> bytearray:
        """The content of an object, verified.

        Raises :class:`MissingObject` and :class:`CorruptObject` (by the word of the store's leader, after a second
        look), :class:`UnavailableError`.
        """
        async with self._receiving:
            content, digest = await self._read(reference, self._some_chunks)
            if (len(content), digest) == (reference.size, reference.digest):
                return content
            del content  # whichever replica answered may lag behind, or be damaged: the leader's word counts
            content, digest = await self._read(reference, self._leaders_chunk)
        if not content:
            raise MissingObject(f"the object {reference.name} is not in bucket {self.bucket}")
        if (len(content), digest) != (reference.size, reference.digest):
            raise CorruptObject(
                f"the object {reference.name} in bucket {self.bucket} is damaged: {len(content):,} bytes with digest "
                f"{digest}, where the event says {reference.size:,} with {reference.digest}"
            )
        return content

    async def _read(self, reference: Reference, chunks: _Chunks) -> tuple[bytearray, str]:
        """What is stored of an object, up to the size it should have, and its digest."""
        content = bytearray()
        hashed = sha256()
        start = 1
        while len(content) < reference.size:
            found = await chunks(chunks_subject(self.bucket, reference.name), start)
            for record in found:
                content += record.payload
                hashed.update(record.payload)
                start = record.sequence + 1
            if not found:
                break
        return content, digest_text(hashed.digest())

    async def _some_chunks(self, subject: str, start: int) -> list[Record]:
        """The next few messages of a subject, by whichever replica answers."""
        body = orjson.dumps({"next_by_subj": subject, "seq": start, "batch": IN_FLIGHT})
        direct = f"{API}.DIRECT.GET.{self._stream}"
        try:
            answer = await patiently(
                lambda limit: self._connection.request_many(direct, body, timeout=limit, last=_is_end),
                self._timeout,
                ATTEMPT,
            )
        except (Fault, UnavailableError) as fault:
            raise error_of(fault, "reading a large value") from None
        return [records.of_direct(message) for message in answer[:-1]]

    async def _leaders_chunk(self, subject: str, start: int) -> list[Record]:
        """The next message of a subject, by the word of the leader."""
        record = await self._leader_get({"next_by_subj": subject, "seq": start})
        return [] if record is None else [record]

    # -- the store itself ---------------------------------------------------------------------------------------------

    async def infos(self, after: int) -> AsyncIterator[ObjectInfo]:
        """The objects whose present description came after sequence ``after`` of the store's stream, oldest first.

        A sequence that the stream has not reached is from before it was made anew: then all of them.
        """
        info = await self._ask(f"STREAM.INFO.{self._stream}", None, "looking through the large values")
        target = int(info["state"]["last_seq"])
        if after == target:
            return
        start = after + 1 if after < target else 1
        async with Reader(self._connection, self._stream, [f"$O.{self.bucket}.M.>"], start=start) as reader:
            async for record in reader.until(target):
                described = _described(record)
                if described is not None:
                    yield described

    async def last_chunk_at(self, name: str) -> int | None:
        """When the latest chunk of an object was stored, in nanoseconds since the epoch; None if there is none."""
        record = await self._leader_get({"last_by_subj": chunks_subject(self.bucket, name)})
        return None if record is None else record.timestamp

    async def remove(self, name: str, *, patience: float | None = None) -> None:
        """Take an object away, its description last, so that an interruption leaves something to begin again with.

        Only for what no event refers to, nor ever can: whoever reads a reference to it finds nothing.
        """
        for subject in (chunks_subject(self.bucket, name), meta_subject(self.bucket, name)):
            await self._ask(
                f"STREAM.PURGE.{self._stream}", {"filter": subject}, "taking a large value away", patience=patience
            )

    async def _leader_get(self, body: Mapping[str, Any]) -> Record | None:
        doing = "reading a large value"
        return await leader_get(self._connection, self._stream, body, doing=doing, patience=self._timeout)

    async def _ask(
        self, subject: str, body: Mapping[str, Any] | None, doing: str, *, patience: float | None = None
    ) -> dict[str, Any]:
        try:
            return await api(self._connection, subject, body, patience=patience or self._timeout)
        except Fault as fault:
            raise error_of(fault, doing) from None


def _described(record: Record) -> ObjectInfo | None:
    """The object that a description is of; None if it is none of ours, since others may write here, too."""
    try:
        info = orjson.loads(record.payload)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(info, dict) or not is_object_name(str(info.get("name"))):
        return None
    about = info.get("metadata")
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        about = {}
    return ObjectInfo(info["name"], record.sequence, record.timestamp, not info.get("deleted"), about)


def _is_end(message: Message) -> bool:
    """The end of a direct get's answers: any status message (204 done, 404 nothing there)."""
    return message.status != 0
