"""The runner: keeps the view of one projection current, and makes it anew.

Owns: which generation of a view is worked on, when, and by whom. Several runners of one projection on one store take
turns: a lease says who is active, and the view itself refuses whoever is not where it stands, so that a runner which
was paused and believes to be active changes nothing. Invariants: every event is in the view once, whatever dies; a
rebuild never shows until it is at least where the live view is; a failure stops this projection alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from agentfield import Erasure, InvalidInputError, NotFoundError, ProjectionError, UnavailableError
from projections.erasures import Erasures
from projections.folding import BATCH, Folder, forgetting, preparing
from projections.projection import Projection, Selection, check
from projections.source import Batch, Batches, Lease, Source, check_selection
from projections.view import Busy, Fold, Head, Moment, Moved, Store, View

logger = logging.getLogger("agentfield.projections")

_LOOK = 0.5
"""Seconds between looks at whether the view was paused or replaced while nothing comes."""
_AGAIN = 1.0
"""Seconds until an outage is tried again; the connection itself comes back as soon as it can."""
_CHASE = 5
"""Rounds in which a rebuild comes closer to the live view before it holds that one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comparing a view with a rebuilt one showed."""

    checkpoint: int
    """Up to where both were made."""
    rows: int
    """How many rows were equal."""
    found: Sequence[Any] | None = None
    """The first row of the view that differs; None if it lacks one, or nothing differs."""
    expected: Sequence[Any] | None = None
    """What the rebuilt view has in its place; None if it has none."""
    trimmed: int = 0
    """How many rows more there are that the log no longer holds, so that nothing could be compared with them."""

    @property
    def equal(self) -> bool:
        """Whether every row is the same."""
        return self.found is None and self.expected is None


def view_name(name: str, store: Store, kind: str) -> str:
    """What tells a view from every other of this name, wherever it is kept."""
    return f"{name}-{store.identity(kind)}"


class Runner:
    """Runs one projection on one store. Raises InvalidInputError if the projection is not one that can run."""

    def __init__(self, source: Source, projection: Projection, store: Store) -> None:
        self.projection = check(projection)
        self.name = projection.name
        self.source = source
        self.store = store
        self.selection = check_selection(Selection.of(projection))
        self._erasures = Erasures(
            source, self.name, view_name(self.name, store, projection.store), keeps=self.keeps_values
        )

    async def run(self) -> None:
        """Keep the view current until cancelled; stand by while another instance does.

        Waits out every outage. Raises :class:`ProjectionError` when the projection cannot go on, and
        :class:`InvalidInputError` when its code does not fit the view there is.
        """
        async with self.lease() as lease:
            while True:
                await lease.wait()
                try:
                    async with self._erasures.listening():
                        while lease.held and not self._erasures.deaf:
                            await self._work(lease)
                except UnavailableError as error:
                    await self._wait(error)

    async def catch_up(self) -> int:
        """Bring the view to where the log is now, and return that sequence. Raises as :meth:`run`, outages included.

        A view that is paused is left where it is, and where that is, is returned.
        """
        target = await self.source.last()
        while True:
            try:
                async with self.opened() as view:
                    head = await view.head()
                    if head.paused:
                        return head.checkpoint
                    if head.checkpoint < target:
                        await self._fold(Folder(self.projection, view, head), target)
                    return max(target, head.checkpoint)
            except Moved:
                await asyncio.sleep(_LOOK / 10)  # another instance is at it: see how far it has come

    async def rebuild(self) -> int:
        """Make the view anew beside the live one, then put it in its place; return where it stands.

        The live view stays as it is, and current where somebody runs it, until the new one has come as far. What was
        begun and broken off is continued. A view that is paused stays paused. Raises as :meth:`catch_up`; then the live
        view is untouched.
        """
        live = await self.store.live(self.name)
        if live is None:
            return await self.catch_up()
        try:
            return await self._rebuild(live)
        except Moved as moved:
            raise ProjectionError(f"another process rebuilds {self.name}: {moved}", projection=self.name) from None

    async def _rebuild(self, live: View) -> int:
        """The same; raises Moved if somebody else is at it. The live view is closed."""
        try:
            paused = (await live.head()).paused
            async with self._building() as view:
                head = await view.head()
                folder, generation = Folder(self.projection, view, head), head.generation
                for _ in range(_CHASE):
                    target = await self.source.last()
                    behind = target - folder.checkpoint
                    await self._fold(folder, target)
                    if behind <= BATCH:
                        break
                async with live.frozen(alone=True) as moment:
                    if moment.head.log == await self.source.log_id():
                        await self._fold(folder, moment.head.checkpoint)
                    if paused:
                        await view.pause(True)
                    await self.store.switch(self.name, generation)
            if self._erasures.possible:
                await self.store.tidy(self.name)
                await self._erasures.honoured(head.erased)
            logger.info("projection %s: rebuilt up to %d", self.name, folder.checkpoint)
            return folder.checkpoint
        finally:
            await live.aclose()

    async def verify(self) -> Verdict:
        """Compare the view with one made anew from the log up to the same event; the first difference is named.

        The view may be run meanwhile. Raises :class:`NotFoundError` if there is none, else as :meth:`catch_up`.
        """
        live = await self._existing()
        try:
            async with live.frozen() as ours:
                self._check_fit(ours.head)
                head = await self._new_head()
                scratch = await self.store.scratch(self.projection.store, head, self._prepare)
                try:
                    await self._fold(Folder(self.projection, scratch, head), ours.head.checkpoint)
                    async with scratch.frozen() as anew:
                        return await live.call(self._compare, live, ours, anew)
                finally:
                    await scratch.aclose()
        finally:
            await live.aclose()

    async def pause(self, paused: bool) -> None:
        """Let no instance advance the view, or let it go on. Raises :class:`NotFoundError` if there is none."""
        live = await self._existing()
        try:
            await live.pause(paused)
        finally:
            await live.aclose()

    @property
    def keeps_values(self) -> bool:
        """Whether the view holds values in plain, so that an erasure concerns it."""
        return True

    def lease(self) -> Lease:
        """What this runner and its like compete for, as an async context manager."""
        return self.source.lease(view_name(self.name, self.store, self.projection.store))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[View]:
        """The live view, fit for this projection: made if there is none, rebuilt if it is of an earlier version.

        Free of what was erased, too, be it paused or not.
        """
        live = await self.store.live(self.name)
        if live is None:
            live = await self.store.create(self.projection.store, await self._new_head(), self._prepare)
        try:
            head = await live.head()
            if head.version < self.projection.version and not head.paused:
                await live.aclose()
                logger.info("projection %s: from version %d to %d", self.name, head.version, self.projection.version)
                await self.rebuild()
                live = await self._existing()
                head = await live.head()
            await self._check_log(head)
            self._check_fit(head)
            live = await self._without_erased(live, head)
            yield live
        finally:
            await live.aclose()

    # -- at work ------------------------------------------------------------------------------------------------------

    async def _work(self, lease: Lease) -> None:
        """Follow the log for as long as the lease is ours and the view stays the live one, as it is."""
        try:
            await self._work_on_one(lease)
        except Moved as moved:
            logger.debug("projection %s: %s", self.name, moved)
            await asyncio.sleep(0)
        except (UnavailableError, Busy) as error:
            await self._wait(error)

    async def _wait(self, error: Exception) -> None:
        logger.warning("projection %s waits: %s", self.name, error)
        await asyncio.sleep(_AGAIN)

    async def _work_on_one(self, lease: Lease) -> None:
        """The same; raises Moved at the end."""
        async with self.opened() as view:
            head = await view.head()
            while head.paused:
                await view.rest()
                await asyncio.sleep(_LOOK)
                self._look(view, lease)
                head = await view.head()
            folder = Folder(self.projection, view, head)
            logger.info("projection %s runs from event %d on, into %s", self.name, head.checkpoint + 1, view.place)
            async with self._feed(head.checkpoint + 1) as feed:
                await self._follow(folder, feed, view, lease)

    async def _follow(self, folder: Folder, feed: Batches, view: View, lease: Lease) -> None:
        coming: asyncio.Task[Batch] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.create_task(feed.batch(BATCH), name=f"projection {self.name}")
                await asyncio.wait({coming}, timeout=0 if coming.done() else _LOOK)
                if not coming.done():
                    await view.rest()
                    self._look(view, lease)
                    continue
                batch, coming = coming.result(), None
                self._look(view, lease)
                await folder.take(batch)
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    def _look(self, view: View, lease: Lease) -> None:
        """Raises Moved if there is no more work for us on this view."""
        if not lease.held:
            raise Moved("another instance is active")
        if not view.good():
            raise Moved("another generation is live")
        if self._erasures.heard:
            raise Moved("something was erased, or may have been")

    async def _without_erased(self, live: View, head: Head) -> View:
        """The live view, free of every value that has been erased by now, which is then confirmed."""
        last = await self._erasures.last()
        if last > head.erased:
            erasures = await self._erasures.after(head.erased)
            if not await self._taken_out(live, head, erasures):
                logger.info("projection %s: made anew without what was erased", self.name)
                await self._rebuild(live)
                live = await self._existing()
            last = max(last, erasures[-1].revision)
        await self._erasures.honoured(last)
        return live

    async def _taken_out(self, live: View, head: Head, erasures: list[Erasure]) -> bool:
        """Whether the view is free of erased values without being made anew."""
        last = erasures[-1].revision
        if head.erased >= 0 and (not head.events or not self._erasures.concern(self.selection, erasures)):
            return await live.forget(last, None)
        forget = forgetting(self.projection, erasures)
        if forget is None:
            return False
        await self.store.tidy(self.name)
        building = await self.store.building(self.name)
        if building is not None:
            begun = (await building.head()).generation
            await building.aclose()
            await self.store.discard(self.name, begun)
        try:
            return await live.forget(last, forget)
        except (Moved, Busy, UnavailableError):
            raise
        except Exception as error:  # the function is the user's, and there is another way
            logger.warning("projection %s cannot take out what was erased, and is made anew", self.name, exc_info=error)
            return False

    async def _fold(self, folder: Folder, target: int) -> None:
        """Bring a view up to sequence ``target``."""
        if folder.checkpoint >= target:
            return
        async with self._feed(folder.checkpoint + 1) as feed:
            await folder.through(feed, target)

    def _feed(self, start: int) -> Batches:
        return self.source.feed(self.selection, start, previous=self.projection.previous)

    @asynccontextmanager
    async def _building(self) -> AsyncIterator[View]:
        """The generation to come, as far as it is made; whatever is no use any more is removed."""
        view = await self.store.building(self.name)
        if view is not None:
            head = await view.head()
            wanted = (self.projection.version, self.selection, await self.source.log_id())
            if (head.version, head.selection, head.log) != wanted or head.erased < await self._erasures.last():
                await view.aclose()
                await self.store.discard(self.name, head.generation)
                view = None
        if view is None:
            view = await self.store.create(self.projection.store, await self._new_head(), self._prepare)
        try:
            yield view
        finally:
            await view.aclose()

    async def _existing(self) -> View:
        live = await self.store.live(self.name)
        if live is None:
            raise NotFoundError(f"there is no view of {self.name!r} in this store: run the projection first")
        return live

    async def _new_head(self) -> Head:
        return Head(
            name=self.name,
            version=self.projection.version,
            generation=1,
            log=await self.source.log_id(),
            selection=self.selection,
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
    def _prepare(self) -> Fold:
        return preparing(self.projection)

    async def _check_log(self, head: Head) -> None:
        log = await self.source.log_id()
        if head.log != log:
            raise ProjectionError(
                f"the view of {self.name} was made from another log ({head.log}, this is {log}): rebuild it, or keep "
                "views of different servers in different stores",
                projection=self.name,
            )

    def _check_fit(self, head: Head) -> None:
        ours = self.projection.version
        if head.version != ours:
            raise InvalidInputError(
                f"the view of {self.name} is of version {head.version}, and this code of version {ours}: run the newer"
                " code, or let the older view go with `agentfield projections remove`"
            )
        if head.selection != self.selection:
            raise InvalidInputError(
                f"projection {self.name} hears other patterns or scopes than its view was made of: raise its version"
            )

    def _compare(self, live: View, ours: Moment, anew: Moment) -> Verdict:
        def rows(moment: Moment) -> Iterable[Sequence[Any]]:
            chosen = self.projection.snapshot(moment.content)
            return live.rows(moment.content) if chosen is None else chosen

        count = 0
        for found, expected in zip_longest(rows(ours), rows(anew)):
            if found != expected:
                return Verdict(ours.head.checkpoint, count, found, expected)
            count += 1
        return Verdict(ours.head.checkpoint, count)
