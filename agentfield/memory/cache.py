"""The near-cache: values of keys that this process reads often, answered without a round trip.

Owns: the last records of the keys that were read through it, kept current by following the log. Must not know: values.
Invariants: it never answers behind what its reader has already seen (its position in the log is exact, since it follows
every event); it is bounded in keys and bytes; when it cannot prove an answer, it asks the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from agentfield.codec import Record
from agentfield.errors import AgentFieldError
from agentfield.execution import Seen
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reader import Reader
from agentfield.memory.state import plain_content

logger = logging.getLogger("agentfield.cache")

MAX_KEYS = 50_000
MAX_BYTES = 64 * 1024 * 1024
_MAX_ANSWERS = 8192
"""Answers that are remembered; forgetting them costs a microsecond each."""
_OVERHEAD = 700
"""Bytes a kept record costs beyond its subject and payload, headers included: measured, rounded up."""


class Freshness(NamedTuple):
    """How current a near-cache is, and how full."""

    revision: int
    """Every event up to this one has been applied."""
    age: float
    """Seconds since the cache last heard from the server; it may be behind by what happened since."""
    keys: int
    size: int
    """Bytes, roughly."""


class NearCache:
    """The near-cache over one fabric. ``start`` it once; the fabric closes it."""

    def __init__(self, fabric: Fabric, *, max_keys: int = MAX_KEYS, max_bytes: int = MAX_BYTES) -> None:
        self._fabric = fabric
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, Record | None] = OrderedDict()
        self._answers: dict[tuple[str, ...], tuple[int, bytes]] = {}
        self._crowded = False
        self._loading: dict[str, int] = {}
        self._arrived: dict[str, Record] = {}
        self._bytes = 0
        self._heard = 0.0
        self._reader: Reader | None = None
        self._follower: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.namespace = fabric.subjects.namespace
        self.position = 0

    async def start(self) -> None:
        """Begin to follow the log from its present end. Raises :class:`UnavailableError`; nothing runs then."""
        target = int((await self._fabric.log.state())["last_seq"])
        reader = Reader(self._fabric.connection, self._fabric.log.stream, [], start=target + 1)
        await reader.__aenter__()
        self._reader = reader
        self.position = target
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._follower = asyncio.create_task(self._follow(reader), name="agentfield near-cache")
        self._fabric.own(self.aclose)

    async def aclose(self) -> None:
        """Stop following and forget everything. Idempotent."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.aclose()
        self._records.clear()
        self._answers.clear()
        self._bytes = 0

    @property
    def freshness(self) -> Freshness:
        """How current the cache is."""
        heard = self._reader.heard if self._reader is not None else 0.0
        age = asyncio.get_running_loop().time() - max(self._heard, heard)
        return Freshness(self.position, age, len(self._records), self._bytes)

    def glance(self, subjects: tuple[str, ...], seen: Seen) -> bytes | None:
        """The JSON of the first of these subjects that has a value, empty if none has; it counts as seen then.

        None if it is not that simple: something is not here, or expires, or lies elsewhere, or may be behind what the
        reader has seen, or this is another loop than the cache's. Never waits, and remembers its answers for as long as
        nothing that is kept changes.
        """
        if self.position < seen.revision or self._follower is None or self._loop is not asyncio.get_running_loop():
            return None
        answer = self._answers.get(subjects) or self._answer(subjects)
        if answer is None:
            return None
        revision, content = answer
        if revision > seen.revision:
            seen.revision = revision
        if self._crowded:
            self._use(subjects)
        return content

    def _answer(self, subjects: tuple[str, ...]) -> tuple[int, bytes] | None:
        revision, content = 0, b""
        for subject in subjects:
            if subject not in self._records:
                return None
            record = self._records[subject]
            plain = plain_content(record)
            if plain is None:
                return None
            if record is not None:
                revision = max(revision, record.sequence)
            if plain:
                content = plain
                break
        if len(self._answers) >= _MAX_ANSWERS:
            self._answers.clear()
        self._answers[subjects] = revision, content
        return revision, content

    def peek(self, subjects: Sequence[str], seen: int) -> list[Record | None] | None:
        """The last records, if all are here and nothing the reader has seen is missing; else None. Never waits."""
        if self.position < seen or self._follower is None:
            return None
        records = self._records
        try:
            found = [records[subject] for subject in subjects]
        except KeyError:
            return None
        self._use(subjects)
        return found

    def _use(self, subjects: Sequence[str]) -> None:
        for subject in subjects:
            self._records.move_to_end(subject)

    async def last(self, subjects: Sequence[str], seen: int) -> list[Record | None]:
        """The last records, from here if that is proven right, else from the log, and kept for the next time."""
        found = self.peek(subjects, seen)
        return found if found is not None else await self._load(subjects)

    async def _load(self, subjects: Sequence[str]) -> list[Record | None]:
        # An event that is followed while its key is being read must not be lost between the two: it is set aside.
        for subject in subjects:
            self._loading[subject] = self._loading.get(subject, 0) + 1
        try:
            read = await self._fabric.log.last(subjects)
            newest: list[Record | None] = []
            for subject, record in zip(subjects, read, strict=True):
                for other in (self._arrived.get(subject), self._records.get(subject)):
                    if other is not None and (record is None or other.sequence > record.sequence):
                        record = other
                self._keep(subject, record)
                newest.append(record)
            return newest
        finally:
            for subject in subjects:
                self._loading[subject] -= 1
                if not self._loading[subject]:
                    del self._loading[subject]
                    self._arrived.pop(subject, None)

    async def _follow(self, reader: Reader) -> None:
        try:
            async for record in reader.follow():
                self.apply(record)
        except AgentFieldError as error:
            logger.warning("the near-cache lost the log (%s); reads go to the server until it is back", error)
        finally:
            self._follower = None  # nothing is current any more: peek() refuses from here on

    def apply(self, record: Record) -> None:
        """Take in one event of the log, in order."""
        subject = record.subject
        if subject in self._records:
            kept = self._records[subject]
            if kept is None or kept.sequence < record.sequence:
                self._keep(subject, record)
        if subject in self._loading:
            self._arrived[subject] = record
        self.position = record.sequence

    def _keep(self, subject: str, record: Record | None) -> None:
        if subject in self._records:
            self._bytes -= _weight(subject, self._records.pop(subject))
        self._records[subject] = record
        self._bytes += _weight(subject, record)
        self._answers.clear()
        while len(self._records) > self._max_keys or self._bytes > self._max_bytes:
            evicted, old = self._records.popitem(last=False)
            self._bytes -= _weight(evicted, old)
        self._crowded = len(self._records) > self._max_keys // 2 or self._bytes > self._max_bytes // 2


class NearCaches:
    """The near-cache of each fabric that a memory uses: one at a time, made on the first cached read."""

    def __init__(self) -> None:
        self._fabric: Fabric | None = None
        self.current: NearCache | None = None
        """The cache in use, running or not."""
        self._starting: asyncio.Lock | None = None

    def ready(self, fabric: Fabric) -> NearCache | None:
        """The cache of this fabric if it is running."""
        return self.current if self._fabric is fabric else None

    async def of(self, fabric: Fabric) -> NearCache:
        """The cache of this fabric, started if need be. Raises :class:`UnavailableError`."""
        if self._fabric is not fabric or self._starting is None:
            self._fabric, self.current, self._starting = fabric, None, asyncio.Lock()
        async with self._starting:
            if self.current is None:
                cache = NearCache(fabric)
                await cache.start()
                self.current = cache
            return self.current


def _weight(subject: str, record: Record | None) -> int:
    return _OVERHEAD + len(subject) + (len(record.payload) if record is not None else 0)
