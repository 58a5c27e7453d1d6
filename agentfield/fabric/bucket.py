"""The buckets that the server fills from the log: reading them through, and purging markers.

Owns: what our own code does with a bucket. Nothing here can write a value: a bucket only sources.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from agentfield.codec import Record
from agentfield.fabric import records
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.reader import Reader
from agentfield.fabric.wire.connection import Connection


class Bucket:
    """One KV bucket by its name, e.g. ``agentfield-global``."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name
        self._stream = f"KV_{name}"

    async def last_sequence(self) -> int:
        """The bucket's own last sequence. Raises :class:`UnavailableError`."""
        try:
            return int((await api(self._connection, f"STREAM.INFO.{self._stream}"))["state"]["last_seq"])
        except Fault as fault:
            raise error_of(fault, f"looking at bucket {self.name}") from None

    async def read(self, start: int = 1) -> AsyncIterator[Record]:
        """Every message of the bucket from its own sequence ``start`` on, as it stands at the call, in order."""
        target = await self.last_sequence()
        if start > target:
            return
        async with Reader(self._connection, self._stream, [], start=start) as reader:
            async for record in reader.until(target):
                yield record

    async def last(self, subject: str) -> Record | None:
        """The bucket's last message on a subject, or on any that a filter matches, as its leader knows it.

        None if there is none, or no such bucket.
        """
        try:
            answer = await api(self._connection, f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject})
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT:
                return None
            raise error_of(fault, f"reading bucket {self.name}") from None
        return records.of_leader(answer["message"])

    async def remove(self) -> None:
        """Remove the bucket as a whole: the log is not touched, and whoever provides the topology makes it anew."""
        try:
            await api(self._connection, f"STREAM.DELETE.{self._stream}")
        except Fault as fault:
            if not (isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT):
                raise error_of(fault, f"removing bucket {self.name}") from None

    async def purge(self, subject: str, sequence: int) -> None:
        """Remove what the bucket holds under ``subject`` up to and including its own ``sequence``."""
        try:
            await api(self._connection, f"STREAM.PURGE.{self._stream}", {"filter": subject, "seq": sequence + 1})
        except Fault as fault:
            raise error_of(fault, f"sweeping bucket {self.name}") from None
