"""Uploading: one object's way into the object store, in chunks, with a bounded number of them in flight.

Owns: the order of the messages that make an object (ADR-20), and the proof that they are all there. It is announced
first, as deleted to whoever looks, so that nothing of it can lie about unnoticed; then come the chunks; its description
comes last. Must not know: what the content is. Invariant: an object is described only when all of its chunks are
stored, in their order, each once.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import orjson

from agentfield.errors import UnavailableError
from agentfield.fabric.faults import Fault, error_of
from agentfield.fabric.jetstream import api, publish
from agentfield.fabric.wire.connection import Connection
from agentfield.header import EVENT_ID
from agentfield.reference import Reference, digest_text

CHUNK = 128 * 1024
"""Bytes of content in one message: what every object store client uses, and a fair share of a connection."""
IN_FLIGHT = 8
"""Chunks of one object on their way at once: enough to hide the way to the server, 1 MiB."""
ATTEMPT = 10.0
"""Seconds that one chunk may take before it is sent again: longer than a leader change, since it may be a slow line."""
_ROOM = 4096
"""Bytes of a message kept free for its headers."""
_SMALLEST = 1024
"""Bytes of content in one message on a server that takes only very small ones."""
_ROLLUP = MappingProxyType({"Nats-Rollup": "sub"})
_NO_TIME = "0001-01-01T00:00:00Z"  # readers take an object's time from its message
_DOING = "storing a large value (nothing was written)"


class OutOfOrderFault(Fault):
    """Chunks were stored in another order than they were sent, or twice: the object is of no use."""


def chunks_subject(bucket: str, name: str) -> str:
    """Where the chunks of an object are. Its name is also its ``nuid``, since a name is used once."""
    return f"$O.{bucket}.C.{name}"


def meta_subject(bucket: str, name: str) -> str:
    """Where the description of an object is."""
    return f"$O.{bucket}.M.{urlsafe_b64encode(name.encode()).decode()}"


class Upload:
    """One try to store an object under a name that was never used before."""

    def __init__(self, connection: Connection, stream: str, bucket: str, name: str, *, timeout: float) -> None:
        self._connection = connection
        self._stream = stream
        self._bucket = bucket
        self._name = name
        self._timeout = timeout
        self._chunks = chunks_subject(bucket, name)
        self._meta = meta_subject(bucket, name)

    async def run(self, content: bytes, description: str, about: Mapping[str, str]) -> Reference:
        """Store it; on return it is whole and durable.

        Raises :class:`OutOfOrderFault`, :class:`UnavailableError` (no answer to one message within the timeout), and
        what the server's refusals mean. What was stored by then stays, incomplete.
        """
        size = max(_SMALLEST, min(CHUNK, self._connection.max_payload - _ROOM))
        info: dict[str, Any] = {
            "name": self._name,
            "description": description,
            "metadata": dict(about),
            "options": {"max_chunk_size": size},
            "bucket": self._bucket,
            "nuid": self._name,
            "size": 0,
            "chunks": 0,
            "mtime": _NO_TIME,
            "deleted": True,
        }
        await self._publish(self._meta, orjson.dumps(info), {EVENT_ID: f"{self._name}-announced"})
        digest, count = await self._send(content, size)
        await self._verify(count)
        info |= {"size": len(content), "chunks": count, "digest": digest, "deleted": False}
        await self._publish(self._meta, orjson.dumps(info), {EVENT_ID: self._name, **_ROLLUP})
        return Reference(self._name, digest, len(content))

    async def _send(self, content: bytes, size: int) -> tuple[str, int]:
        """Publish every chunk; return the digest of all and their number."""
        hashed = sha256()
        view = memoryview(content)
        waiting: deque[asyncio.Task[int]] = deque()
        last = count = 0
        try:
            for begin in range(0, len(view), size):
                if len(waiting) >= IN_FLIGHT:
                    last = _following(last, await waiting.popleft())
                chunk = bytes(view[begin : begin + size])
                hashed.update(chunk)
                count += 1
                publishing = self._publish(self._chunks, chunk, {EVENT_ID: f"{self._name}-{count}"})
                waiting.append(asyncio.create_task(publishing))
            while waiting:
                last = _following(last, await waiting.popleft())
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return digest_text(hashed.digest()), count

    async def _verify(self, count: int) -> None:
        """That just these chunks are stored: the last look before anybody is given the object."""
        try:
            body = {"subjects_filter": self._chunks}
            info = await api(self._connection, f"STREAM.INFO.{self._stream}", body, patience=self._timeout)
        except Fault as fault:
            raise error_of(fault, _DOING) from None
        stored = (info["state"].get("subjects") or {}).get(self._chunks, 0)
        if stored != count:
            raise OutOfOrderFault(f"{stored} chunks are stored, {count} were sent")

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        """Store one message, once however often it is tried; return its sequence in the store's stream."""
        try:
            ack = await publish(self._connection, subject, payload, headers, patience=self._timeout, attempt=ATTEMPT)
        except (Fault, UnavailableError) as fault:
            raise error_of(fault, _DOING) from None
        return int(ack["seq"])


def _following(last: int, sequence: int) -> int:
    if sequence <= last:
        raise OutOfOrderFault(f"a chunk was stored as {sequence}, the one before it as {last}")
    return sequence
