"""Generations: the live view of a projection, the one that is to take its place, and whether either fits the code.

Owns: making them, finding them, and removing what was begun and is no use any more. Must not know: when a view is
folded, or replaced. Invariant: no view is given out as the one to come that was begun by other code, from another log,
or before an erasure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from agentfield import InvalidInputError, NotFoundError, ProjectionError
from projections.erasures import Erasures
from projections.folding import preparing
from projections.projection import Projection, Selection
from projections.source import Source
from projections.view import Fold, Head, Store, View


class Generations:
    """The generations of one projection's view on one store."""

    def __init__(
        self, source: Source, projection: Projection, store: Store, selection: Selection, erasures: Erasures
    ) -> None:
        self._source = source
        self._projection = projection
        self._name = projection.name
        self._store = store
        self._selection = selection
        self._erasures = erasures

    @asynccontextmanager
    async def building(self) -> AsyncIterator[View]:
        """The generation to come, as far as it is made; whatever is no use any more is removed."""
        view = await self._store.building(self._name)
        if view is not None:
            head = await view.head()
            wanted = (self._projection.version, self._selection, await self._source.log_id())
            if (head.version, head.selection, head.log) != wanted or head.erased < await self._erasures.last():
                await view.aclose()
                await self._store.discard(self._name, head.generation)
                view = None
        if view is None:
            view = await self.create()
        try:
            yield view
        finally:
            await view.aclose()

    async def create(self) -> View:
        """One that is empty yet: the live one, if there is none."""
        return await self._store.create(self._projection.store, await self.new_head(), self.prepare)

    async def existing(self) -> View:
        """The live one. Raises :class:`NotFoundError` if there is none."""
        live = await self._store.live(self._name)
        if live is None:
            raise NotFoundError(f"there is no view of {self._name!r} in this store: run the projection first")
        return live

    async def new_head(self) -> Head:
        """Where a view stands that nothing was folded into yet."""
        return Head(
            name=self._name,
            version=self._projection.version,
            generation=1,
            log=await self._source.log_id(),
            selection=self._selection,
            checkpoint=0,
            events=0,
            skipped=0,
            paused=False,
            error=None,
            failed_at=None,
            updated=datetime.now(UTC),
            erased=await self._erasures.last(),
        )

    @property
    def prepare(self) -> Fold:
        """What an empty view is made ready with."""
        return preparing(self._projection)

    async def check_log(self, head: Head) -> None:
        """Raises :class:`ProjectionError` if the view was made from another log."""
        log = await self._source.log_id()
        if head.log != log:
            raise ProjectionError(
                f"the view of {self._name} was made from another log ({head.log}, this is {log}): rebuild it, or keep "
                "views of different servers in different stores",
                projection=self._name,
            )

    def check_fit(self, head: Head) -> None:
        """Raises InvalidInputError if the view is of other code than this."""
        ours = self._projection.version
        if head.version != ours:
            remedy = (
                "run the newer code, or go back to this one with `agentfield projections rebuild`"
                if head.version > ours
                else "`agentfield projections run` makes it anew with this code, and rebuild does where it is paused"
            )
            raise InvalidInputError(
                f"the view of {self._name} is of version {head.version}, and this code of version {ours}: {remedy}"
            )
        if head.selection != self._selection:
            raise InvalidInputError(
                f"projection {self._name} hears other patterns or scopes than its view was made of: raise its version"
            )
