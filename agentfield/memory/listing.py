"""Listing what memory holds, or held: every entry whose key matches, in the present and in the past alike.

Owns: what is made of the records that match. Must not know: which moment they are of.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator

from agentfield.codec import Record
from agentfield.event import Entry
from agentfield.fabric.fabric import Fabric
from agentfield.memory.scoped import Scoped


class Listing(Scoped):
    """The operations that list."""

    async def items(
        self, pattern: str = "*", scope: str | None = None, scope_id: str | None = None
    ) -> AsyncIterator[Entry]:
        """The entries whose keys match a pattern, each key once, from the first scope that has it.

        Of the present, as of an instant not before the first step; an entry written meanwhile may come in its newer
        form. Of the past, those of its moment.
        """
        fabric, records = await self._matching(pattern, scope, scope_id)
        resolver = self._resolver(fabric)
        async for record in records:
            yield await resolver.entry(record)

    async def keys(
        self, pattern: str = "*", scope: str | None = None, scope_id: str | None = None
    ) -> AsyncIterator[str]:
        """The keys that match a pattern and have a value; otherwise as ``items``."""
        fabric, records = await self._matching(pattern, scope, scope_id)
        async for record in records:
            yield fabric.subjects.parse(record.subject)[1]

    @abstractmethod
    async def _matching(
        self, pattern: str, scope: str | None, scope_id: str | None
    ) -> tuple[Fabric, AsyncIterator[Record]]:
        """The records of the entries that match. Raises InvalidInputError for what is no pattern or scope."""
