"""Reading: values, entries, many at once, everything that matches.

Every read asks the log where it cannot be behind an acknowledged write. An outage is an error, never "absent".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Literal, TypeVar, get_args, overload

import orjson

from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.event import Entry
from agentfield.fabric.fabric import Fabric
from agentfield.key import key_tokens
from agentfield.memory.addressing import read_scopes, read_subjects
from agentfield.memory.base import Base
from agentfield.memory.cache import Freshness
from agentfield.memory.encrypting import all_known
from agentfield.memory.listing import Listing
from agentfield.memory.state import is_live, live_entries
from agentfield.pattern import Pattern

D = TypeVar("D")
T = TypeVar("T")
Consistency = Literal["strong", "session", "cached", "linearizable"]
"""What a read may trade for speed: ``strong`` (the log's leader, never behind an acknowledged write), ``session`` (any
replica, never behind what this execution has seen, nor its caller, nor the event that started it), ``cached`` (the same
promise, from this process's near-cache where that can prove it, without a round trip), ``linearizable`` (a barrier
first; right even if the leader that answers has been deposed)."""
_CONSISTENCIES = get_args(Consistency)


class Reads(Base, Listing):
    """The reading operations."""

    @overload
    async def get(
        self,
        key: str,
        default: None = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: type[T],
        consistency: Consistency = "strong",
    ) -> T | None: ...

    @overload
    async def get(
        self,
        key: str,
        default: D,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: type[T],
        consistency: Consistency = "strong",
    ) -> T | D: ...

    # None, and what type checkers do not take for a type, though it is one: int | None, Literal, Annotated.
    @overload
    async def get(
        self,
        key: str,
        default: Any = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: Any = None,
        consistency: Consistency = "strong",
    ) -> Any: ...

    async def get(
        self,
        key: str,
        default: Any = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: Any = None,
        consistency: Consistency = "strong",
    ) -> Any:
        """The value of a key, or ``default`` if it has none. ``None`` can be a value; use ``exists`` to tell.

        ``as_type`` validates the value into a type: a Pydantic model, a dataclass, ``datetime``, ``list[int]``,
        ``int | None``…; :class:`InvalidInputError` if it does not fit. Without it, a key that is bound by ``schema``
        gives its model. The default is returned as it is. ``consistency``: see :data:`Consistency`.
        """
        if consistency == "cached" and as_type is None and not self.schemas:
            content = self._glance(key, scope, scope_id)
            if content is not None:
                return orjson.loads(content) if content else default
        self._check([key], scope, scope_id, consistency)
        fabric = await self._fabric()
        found = await self._find(fabric, key, scope, scope_id, consistency)
        return default if found is None else await self._resolver(fabric).value(found, as_type)

    async def entry(
        self,
        key: str,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        consistency: Consistency = "strong",
    ) -> Entry | None:
        """The current entry of a key: value, revision, time, writer, which scope answered. None if there is none."""
        self._check([key], scope, scope_id, consistency)
        fabric = await self._fabric()
        found = await self._find(fabric, key, scope, scope_id, consistency)
        return None if found is None else await self._resolver(fabric).entry(found)

    async def exists(
        self,
        key: str,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        consistency: Consistency = "strong",
    ) -> bool:
        """Whether a key has a value."""
        self._check([key], scope, scope_id, consistency)
        fabric = await self._fabric()
        return await self._find(fabric, key, scope, scope_id, consistency) is not None

    async def get_many(
        self,
        keys: Iterable[str],
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        consistency: Consistency = "strong",
    ) -> dict[str, Any]:
        """The values of those keys that have one, in the order of ``keys``, in one round trip a thousand subjects."""
        if isinstance(keys, str) or not isinstance(keys, Iterable):
            raise InvalidInputError(f"keys={keys!r}: give a list of keys")
        wanted = list(dict.fromkeys(keys))
        self._check(wanted, scope, scope_id, consistency)
        scopes = read_scopes(self._place(), scope, scope_id)
        fabric = await self._fabric()
        subjects = [fabric.subjects.memory(where, key) for key in wanted for where in scopes]
        if not subjects:
            return {}
        records = await self._look(fabric, subjects, consistency)
        now = fabric.log.now()
        resolver = self._resolver(fabric)
        values: dict[str, Any] = {}
        for index, record in enumerate(records):
            key = wanted[index // len(scopes)]
            if key not in values and record is not None and is_live(record, now):
                values[key] = await resolver.value(record)
        return values

    async def freshness(self) -> Freshness:
        """How current this process's near-cache is, and how full; starts it if no read has yet."""
        return (await self._near.of(await self._fabric())).freshness

    async def _matching(
        self, pattern: str, scope: str | None, scope_id: str | None
    ) -> tuple[Fabric, AsyncIterator[Record]]:
        parsed = Pattern.parse(pattern)
        scopes = [(where.kind, where.id) for where in read_scopes(self._place(), scope, scope_id)]
        fabric = await self._fabric()
        return fabric, live_entries(fabric, [parsed], scopes, merge=True)

    def _check(self, keys: Iterable[str], scope: str | None, scope_id: str | None, consistency: Consistency) -> None:
        """Raises InvalidInputError for what can never work, before anything is asked, or even connected."""
        for key in keys:
            key_tokens(key)
        read_scopes(self._place(), scope, scope_id)
        if consistency not in _CONSISTENCIES:
            raise InvalidInputError(f"consistency={consistency!r}: one of {', '.join(map(repr, _CONSISTENCIES))}")

    async def _find(
        self, fabric: Fabric, key: str, scope: str | None, scope_id: str | None, consistency: Consistency
    ) -> Record | None:
        subjects = read_subjects(fabric.subjects.namespace, self._place(), scope, scope_id, key)
        records = await self._look(fabric, subjects, consistency)
        now = fabric.log.now()
        for record in records:
            if record is not None and is_live(record, now):
                return record
        return None

    def _glance(self, key: str, scope: str | None, scope_id: str | None) -> bytes | None:
        """What the near-cache can say at once and without a doubt; see :meth:`NearCache.glance`."""
        cache = self._near.current
        if cache is None:
            return None
        place, seen = self._here()
        return cache.glance(read_subjects(cache.namespace, place, scope, scope_id, key), seen)

    async def _look(self, fabric: Fabric, subjects: Sequence[str], consistency: Consistency) -> list[Record | None]:
        """The last record of each subject, as the consistency asks; what is found counts as seen from then on."""
        seen = self.seen
        if consistency == "strong":
            records = await fabric.log.last(subjects)
        elif consistency == "cached":
            cache = self._near.ready(fabric) or await self._near.of(fabric)
            records = cache.peek(subjects, seen.revision) or await cache.last(subjects, seen.revision)
        elif consistency == "session":
            records = await fabric.log.last(subjects, floor=seen.revision)
        else:
            records = await fabric.log.last(subjects, floor=await fabric.log.barrier())
        for record in records:
            if record is not None:
                seen.saw(record.sequence)
        return await all_known(fabric, records)
