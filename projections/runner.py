"""The runner: keeps the view of one projection current, and makes it anew.

Owns: when the view is worked on or replaced, and by whom. Several runners of one projection on one store take turns: a
lease says who is active, and the view itself refuses whoever is not where it stands, so that a runner which was paused
and believes to be active changes nothing. Invariants: every event is in the view once, whatever dies; a rebuild never
shows until it is at least where the live view is; a failure stops this projection alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from agentfield import Erasure, ProjectionError, ResyncRequired, UnavailableError
from projections.comparing import Verdict, compare
from projections.erasures import Erasures
from projections.folding import BATCH, Folder, forgetting
from projections.generations import Generations
from projections.projection import Projection, Selection, check
from projections.source import Batch, Batches, Lease, Source, check_selection
from projections.view import Busy, Head, Moved, Store, View, looking

logger = logging.getLogger("agentfield.projections")

_LOOK = 0.5
"""Seconds between looks at whether the view was paused or replaced while nothing comes."""
_SOON = 2.0
"""Seconds in which a runner has become the active one, if there is no other."""
_AGAIN = 1.0
"""Seconds until an outage is tried again; the connection itself comes back as soon as it can."""
_CHASE = 5
"""Rounds in which a rebuild comes closer to the live view before it holds that one."""


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
        self.selection = self._selected()
        self._erasures = Erasures(
            source, self.name, view_name(self.name, store, projection.store), keeps=self.keeps_values
        )
        self._generations = Generations(source, self.projection, store, self.selection, self._erasures)

    async def run(self) -> None:
        """Keep the view current until cancelled; stand by while another instance does.

        Waits out every outage. Raises :class:`ProjectionError` when the projection cannot go on, and
        :class:`InvalidInputError` when its code does not fit the view there is.
        """
        async with self.lease() as lease:
            while True:
                await self._stand_by(lease)
                try:
                    async with self._erasures.listening():
                        while lease.held and not self._erasures.deaf:
                            await self._work(lease)
                except UnavailableError as error:
                    await self._wait(error)

    async def _stand_by(self, lease: Lease) -> None:
        """Return once the lease is ours. Whoever has to wait for it is told, since nothing else can be seen of it."""
        try:
            async with asyncio.timeout(_SOON):
                await lease.wait()
        except TimeoutError:
            logger.info(
                "projection %s stands by: another instance runs it on this store, or on a copy of it", self.name
            )
            await lease.wait()

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
            async with self._generations.building() as view:
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
        return await looking(self._verify)

    async def _verify(self) -> Verdict:
        live = await self._generations.existing()
        try:
            async with live.frozen() as ours:
                self._generations.check_fit(ours.head)
                head = await self._generations.new_head()
                scratch = await self.store.scratch(self.projection.store, head, self._generations.prepare)
                try:
                    await self._fold(Folder(self.projection, scratch, head), ours.head.checkpoint)
                    async with scratch.frozen() as anew:
                        return await live.call(compare, self.projection, live, ours, anew)
                finally:
                    await scratch.aclose()
        finally:
            await live.aclose()

    async def pause(self, paused: bool) -> None:
        """Let no instance advance the view, or let it go on. Raises :class:`NotFoundError` if there is none."""

        async def pause() -> None:
            live = await self._generations.existing()
            try:
                await live.pause(paused)
            finally:
                await live.aclose()

        await looking(pause)

    @property
    def keeps_values(self) -> bool:
        """Whether the view holds values in plain, so that an erasure concerns it."""
        return True

    def _selected(self) -> Selection:
        """What of the log is heard."""
        return check_selection(Selection.of(self.projection))

    def lease(self) -> Lease:
        """What this runner and its like compete for, as an async context manager."""
        return self.source.lease(view_name(self.name, self.store, self.projection.store))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[View]:
        """The live view, fit for this projection: made if there is none, rebuilt if it is of an earlier version.

        Free of what was erased, too, be it paused or not. One that is paused may be of an earlier version.
        """
        live = await self.store.live(self.name)
        if live is None:
            live = await self._generations.create()
        try:
            head = await live.head()
            await self._check_log(head)
            if head.version < self.projection.version and not head.paused:
                await live.aclose()
                logger.info("projection %s: from version %d to %d", self.name, head.version, self.projection.version)
                await self.rebuild()
                live = await self._generations.existing()
                head = await live.head()
            if head.version >= self.projection.version or not head.paused:
                self._generations.check_fit(head)
            live = await self._without_erased(live, head)
            yield live
        finally:
            await live.aclose()

    async def _check_log(self, head: Head) -> None:
        """Raises :class:`ProjectionError` if the view was made from another log."""
        await self._generations.check_log(head)

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
            if head.paused:
                await self._stay_paused(view, lease)
            folder = Folder(self.projection, view, head)
            logger.info("projection %s runs from event %d on, into %s", self.name, head.checkpoint + 1, view.place)
            try:
                async with self._feed(head.checkpoint + 1) as feed:
                    await self._follow(folder, feed, view, lease)
            except ResyncRequired:
                if not await self.source.trimmed(folder.checkpoint + 1):
                    raise
                raise Moved("the log was trimmed under it") from None

    async def _stay_paused(self, view: View, lease: Lease) -> NoReturn:
        """Return never: raises Moved as soon as it may go on, since it may be of an earlier version then."""
        while (await view.head()).paused:
            await view.rest()
            await asyncio.sleep(_LOOK)
            self._look(view, lease)
        raise Moved("it may go on")

    async def _follow(self, folder: Folder, feed: Batches, view: View, lease: Lease) -> None:
        coming: asyncio.Task[Batch] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.create_task(feed.batch(folder.most), name=f"projection {self.name}")
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
                live = await self._generations.existing()
            last = max(last, erasures[-1].revision)
        await self._erasures.honoured(last)
        return live

    async def _taken_out(self, live: View, head: Head, erasures: list[Erasure]) -> bool:
        """Whether the view is free of erased values without being made anew."""
        last = erasures[-1].revision
        if head.erased >= 0 and (not head.events or not self._erasures.concern(head.selection, erasures)):
            return await live.forget(last, None)
        forget = forgetting(self.projection, erasures)
        if forget is None or head.version != self.projection.version:  # it knows the tables of its own version
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
        while folder.checkpoint < target:
            try:
                async with self._feed(folder.checkpoint + 1) as feed:
                    await folder.through(feed, target)
            except ResyncRequired:
                if not await self.source.trimmed(folder.checkpoint + 1):
                    raise

    def _feed(self, start: int) -> Batches:
        return self.source.feed(self.selection, start, previous=self.projection.previous)
