"""All stores as one: files in a directory, buckets and seals on the server, an archive. Nobody need know which."""

from __future__ import annotations

from pathlib import Path

from agentfield import InvalidInputError
from projections.source import Source
from projections.stores.archive import KIND as ARCHIVE
from projections.stores.archive import ArchiveStore
from projections.stores.bucket import KIND, Buckets
from projections.stores.directory import Directory
from projections.stores.seals import KIND as SEALS
from projections.stores.seals import SealStore
from projections.view import Fold, Head, Store, View


class Stores:
    """The store of a directory and of a source's server: a view lives in one of them, by what its projection says."""

    def __init__(self, source: Source, directory: Directory) -> None:
        self.directory = directory
        self.buckets = Buckets(source)
        self.seals = SealStore(source)
        self.archive = ArchiveStore(source, directory.archive)

    @property
    def root(self) -> Path:
        """The directory."""
        return self.directory.root

    def identity(self, kind: str) -> str:
        """Tells the place where views of a kind are from every other."""
        return self._of(kind).identity(kind)

    async def names(self) -> list[str]:
        """The views that there are."""
        return sorted({name for store in self._all for name in await store.names()})

    async def live(self, name: str) -> View | None:
        """The live generation of a view, or None."""
        return await self.directory.live(name) or await self.buckets.live(name) or await self._other(name)

    async def _other(self, name: str) -> View | None:
        return await self.seals.live(name) or await self.archive.live(name)

    async def building(self, name: str) -> View | None:
        """The generation that a rebuild has begun, or None."""
        return await self.directory.building(name) or await self.buckets.building(name)

    async def create(self, kind: str, head: Head, prepare: Fold) -> View:
        """A new, empty generation. Raises InvalidInputError if the view is where views of this kind are not."""
        store = self._of(kind)
        if any([head.name in await other.names() for other in self._all if other is not store]):
            raise InvalidInputError(
                f"the view of {head.name} is not a {kind} yet, and cannot become one in one step: remove it first "
                "(`agentfield projections remove`), or give the projection another name"
            )
        return await store.create(kind, head, prepare)

    async def scratch(self, kind: str, head: Head, prepare: Fold) -> View:
        """An empty view of nobody's, which is gone when it is closed."""
        return await self._of(kind).scratch(kind, head, prepare)

    async def switch(self, name: str, generation: int) -> None:
        """Make a generation the live one."""
        await (await self._with(name)).switch(name, generation)

    async def discard(self, name: str, generation: int) -> None:
        """Remove a generation that is not live."""
        await (await self._with(name)).discard(name, generation)

    async def tidy(self, name: str) -> None:
        """Remove what somebody left behind who died while he compared a view, or put another in its place."""
        for store in self._all:
            await store.tidy(name)

    async def remove(self, name: str) -> bool:
        """Remove a view with all its generations; whether there was one."""
        removed = [await store.remove(name) for store in self._all]
        return any(removed)

    @property
    def _all(self) -> tuple[Store, ...]:
        return self.archive, self.directory, self.buckets, self.seals  # the one that lets nothing be removed first

    def _of(self, kind: str) -> Store:
        if kind == KIND:
            return self.buckets
        if kind == ARCHIVE:
            return self.archive
        return self.seals if kind == SEALS else self.directory

    async def _with(self, name: str) -> Store:
        """The store that a view lives in."""
        for store in self._all:
            if name in await store.names():
                return store
        return self.directory
