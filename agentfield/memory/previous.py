"""What a key held before: a bounded table that follows the keys of one subscription.

Owns: the last record of each key seen, so that ``previous_data`` is right without asking the server once per event. The
table is filled once; if it then holds every key that matches (``complete``), a key that is not in it had nothing
before. What was evicted, or was too many to fill in, is looked up in the log, a whole batch at a time.
Invariant: for events given in the order of the log, :meth:`of` answers with the key's event just before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from agentfield.codec import Record, is_delete, needed_to_decode
from agentfield.fabric.log import Log
from agentfield.fabric.reading.asof import last_as_of
from agentfield.header import EVENT_HEADER, OPERATION

MAX_KEYS = 20_000
MAX_BYTES = 32 * 1024 * 1024
_LARGE = 64 * 1024
"""Payloads above this many bytes are not kept, only their sequence; they are read again by it (0.3 ms)."""

_SET: Mapping[str, str] = MappingProxyType({})
_DELETED: Mapping[str, str] = MappingProxyType({OPERATION: "DEL"})
_ELSEWHERE: Mapping[str, str] = MappingProxyType({"": "the payload is only in the log"})
"""Headers of kept records: of the original ones only those matter that say what a key held."""


class PreviousTable:
    """The last record before the current event, for every key of a subscription."""

    def __init__(
        self, log: Log, filters: Sequence[str], *, max_keys: int = MAX_KEYS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._log = log
        self._filters = filters
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._table: OrderedDict[str, Record] = OrderedDict()
        self._unknown: set[str] = set()
        self._absent: set[str] = set()
        self._bytes = 0
        self.complete = False

    async def learn(self, subjects: Iterable[str], floor: int) -> None:
        """Take in what the last events of these subjects (at most a thousand) were as of sequence ``floor``.

        For a table that was not filled, before the events of a block are gone through: ``floor`` lies before the first
        one, and after all that were given before. What is known already is not asked for.
        """
        wanted = {each for each in subjects if each not in self._table}
        if self.complete or not wanted:
            return
        self._absent = wanted.copy()
        for record in await last_as_of(self._log, sorted(wanted), floor):
            if record is not None and _is_ours(record):
                self._absent.discard(record.subject)
                self._keep(record)

    async def fill(self, floor: int) -> None:
        """Take in the state as of sequence ``floor``, after which the subscription begins (again)."""
        self._table.clear()
        self._unknown.clear()
        self._absent.clear()
        self._bytes = 0
        if 0 < floor < self._log.held.known:
            self.complete = False  # each is looked up, where what the log lacks is kept
            return
        self.complete = True
        records = await self._log.as_of(self._filters, floor)
        if records is not None:
            for record in records:
                self._keep(record)
            return
        # More keys than one answer holds: read the present, and look up later what has changed since the floor.
        async for record in self._log.last_of_each(self._filters):
            if record.sequence <= floor:
                self._keep(record)
            else:
                self._forget(record.subject)
                self._unknown.add(record.subject)
            if not self.complete:
                return

    def has(self, record: Record) -> bool:
        """Whether it is known without asking the server what the key held before."""
        previous = self._table.get(record.subject)
        if previous is None:
            return record.subject in self._absent or (self.complete and record.subject not in self._unknown)
        return previous.headers is not _ELSEWHERE

    def at_hand(self, record: Record) -> Record | None:
        """The same as :meth:`of`, of a record that it :meth:`has`."""
        return self._table.get(record.subject)

    async def of(self, record: Record) -> Record | None:
        """The event of the same key just before ``record``, which must be newer than any given before of that key."""
        if self.has(record):
            return self.at_hand(record)
        previous = self._table.get(record.subject)
        return await (self._log.before(record) if previous is None else self._log.at(previous.sequence))

    def advance(self, record: Record) -> None:
        """``record`` is now its key's last event."""
        self._unknown.discard(record.subject)
        self._absent.discard(record.subject)
        self._keep(record)

    def _forget(self, subject: str) -> None:
        old = self._table.pop(subject, None)
        if old is not None:
            self._bytes -= _weight(old)

    def _keep(self, record: Record) -> None:
        if not _is_ours(record):
            return
        self._forget(record.subject)
        headers = _DELETED if is_delete(record) else needed_to_decode(record) or _SET
        payload = record.payload
        if len(payload) > _LARGE:
            headers, payload = _ELSEWHERE, b""
        kept = Record(record.subject, record.sequence, record.timestamp, headers, payload)
        self._table[record.subject] = kept
        self._bytes += _weight(kept)
        while len(self._table) > self._max_keys or self._bytes > self._max_bytes:
            _, evicted = self._table.popitem(last=False)
            self._bytes -= _weight(evicted)
            self.complete = False


def _is_ours(record: Record) -> bool:
    """Whether agentfield wrote it: what others put into the log is nothing that a key held."""
    return EVENT_HEADER in record.headers


def _weight(record: Record) -> int:
    weight = len(record.subject) + len(record.payload) + 250
    return weight + sum(map(len, record.headers.values())) if record.headers else weight
