"""The past as memory: what every key held at one moment, read as the present is, and never written.

Owns: reading as of a moment. Must not know: how the log is searched. Invariant: what is read through one view, and all
views made from it, is of one and the same moment; what the log can no longer prove is an error, never "absent". A value
that has been erased since is absent, as it is to every read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar, overload

from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.event import Entry
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reading.asof import last_as_of
from agentfield.key import key_tokens
from agentfield.memory.addressing import read_scopes, read_subjects
from agentfield.memory.encrypting import all_known
from agentfield.memory.listing import Listing
from agentfield.memory.moment import Instant, Moment, Pin, check_whole
from agentfield.memory.scoped import FabricSource
from agentfield.memory.state import is_live, live_entries
from agentfield.pattern import Pattern
from agentfield.schema import Schemas

D = TypeVar("D")
T = TypeVar("T")


class Past(Listing):
    """Memory as it was at one moment: ``memory.as_of(…)``. It reads as memory does, and has nothing that writes.

    The moment is looked up with the first read, and stays. Every read may raise :class:`InvalidInputError` (the moment
    lies in the future), :class:`HistoryTruncatedError` (the log has lost what would prove the answer), and
    :class:`UnavailableError`.
    """

    def __init__(
        self, fabric: FabricSource, pin: Pin, schemas: Schemas, *, agent: str | None, actor_id: str | None
    ) -> None:
        super().__init__(fabric, schemas, agent=agent, actor_id=actor_id)
        self._pin = pin

    async def moment(self) -> Moment:
        """Which moment this is: the last revision that belongs to it, and its time."""
        return (await self._pin.instant(await self._fabric())).moment

    @overload
    async def get(
        self,
        key: str,
        default: None = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: type[T],
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
    ) -> Any: ...

    async def get(
        self,
        key: str,
        default: Any = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        as_type: Any = None,
    ) -> Any:
        """The value that a key had, or ``default`` if it had none; ``as_type`` as for the present's ``get``."""
        fabric, found = await self._find(key, scope, scope_id)
        return default if found is None else await self._resolver(fabric).value(found, as_type)

    async def entry(self, key: str, scope: str | None = None, scope_id: str | None = None) -> Entry | None:
        """The entry that a key had: value, revision, time, writer, which scope answered. None if there was none."""
        fabric, found = await self._find(key, scope, scope_id)
        return None if found is None else await self._resolver(fabric).entry(found)

    async def exists(self, key: str, scope: str | None = None, scope_id: str | None = None) -> bool:
        """Whether a key had a value."""
        _, found = await self._find(key, scope, scope_id)
        return found is not None

    async def get_many(
        self, keys: Iterable[str], scope: str | None = None, scope_id: str | None = None
    ) -> dict[str, Any]:
        """The values of those keys that had one, in the order of ``keys``."""
        if isinstance(keys, str) or not isinstance(keys, Iterable):
            raise InvalidInputError(f"keys={keys!r}: give a list of keys")
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            key_tokens(key)
        scopes = read_scopes(self._place(), scope, scope_id)
        fabric = await self._fabric()
        instant = await self._pin.instant(fabric)
        subjects = [fabric.subjects.memory(where, key) for key in wanted for where in scopes]
        records = await all_known(fabric, await last_as_of(fabric.log, subjects, instant.sequence))
        resolver = self._resolver(fabric)
        values: dict[str, Any] = {}
        proven = False
        for index, key in enumerate(wanted):
            found, sure = _first_live(records[index * len(scopes) : (index + 1) * len(scopes)], instant)
            if not sure and not proven:
                await check_whole(fabric, instant)
                proven = True
            if found is not None:
                values[key] = await resolver.value(found)
        return values

    async def _find(self, key: str, scope: str | None, scope_id: str | None) -> tuple[Fabric, Record | None]:
        key_tokens(key)
        place = self._place()
        read_scopes(place, scope, scope_id)
        fabric = await self._fabric()
        instant = await self._pin.instant(fabric)
        subjects = read_subjects(fabric.subjects.namespace, place, scope, scope_id, key)
        records = await all_known(fabric, await last_as_of(fabric.log, subjects, instant.sequence))
        found, sure = _first_live(records, instant)
        if not sure:
            await check_whole(fabric, instant)
        return fabric, found

    async def _matching(
        self, pattern: str, scope: str | None, scope_id: str | None
    ) -> tuple[Fabric, AsyncIterator[Record]]:
        parsed = Pattern.parse(pattern)
        scopes = [(where.kind, where.id) for where in read_scopes(self._place(), scope, scope_id)]
        fabric = await self._fabric()
        instant = await self._pin.instant(fabric)
        records = live_entries(fabric, [parsed], scopes, merge=True, at=instant)
        return fabric, whole(fabric, records, instant)


async def whole(fabric: Fabric, records: AsyncIterator[Record], instant: Instant) -> AsyncIterator[Record]:
    """The records, which are all there were at an instant; raises HistoryTruncatedError if that cannot be proven."""
    await check_whole(fabric, instant)
    async for record in records:
        yield record
    await check_whole(fabric, instant)  # the log may have been cut while it was read


def _first_live(records: Sequence[Record | None], instant: Instant) -> tuple[Record | None, bool]:
    """The first record, of those of the scopes in order, that gave a value; and whether that is sure.

    It is not where a scope before it has no event: something may have been there that the log has lost.
    """
    sure = True
    for record in records:
        if record is None:
            sure = False
        elif is_live(record, instant.nanoseconds):
            return record, sure
    return None, sure
