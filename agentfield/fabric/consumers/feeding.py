"""Handing out events of a durable consumer that do not come by pulling from it.

Owns: present values, and what lies far behind, which readers bring much faster; and how far they have been handled, of
which the consumer learns by being reset to go on after it. Must not know: pins. Invariants: events are handed out in
the order of the log; what was handed out and not handled comes again, from the consumer, to whoever goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from agentfield.codec import Record
from agentfield.fabric.backlog import FAR, MOST_FILTERS, backlog
from agentfield.fabric.consumers.consuming import ConsumerSpec
from agentfield.fabric.consumers.durable import Durable
from agentfield.fabric.consumers.progress import Progress
from agentfield.fabric.log import Log
from agentfield.fabric.reading.present import present_values

_SAVE_EVERY = 0.5
"""Seconds between savings of how far events have been handled: what a kill -9 can make come again."""
_LAST = 2.0
"""Seconds for the last events to be handled before the consumer takes over; after that, it delivers them once more."""

Take = Callable[[Record, Record | None], None]
"""Takes an event over; with the one before it of its key, if it is a present value."""


class Feeding:
    """What feeds one instance of a consumer. ``may`` says whether it is surely the active one at the moment."""

    def __init__(self, log: Log, spec: ConsumerSpec, durable: Durable, progress: Progress, may: Callable[[], bool]):
        self._log = log
        self._spec = spec
        self._durable = durable
        self._progress = progress
        self._may = may
        self._forbidden = False
        self._saver: asyncio.Task[None]
        self.moved = asyncio.Event()
        """Set whenever much of what was handed out, or all of it, is done."""

    def pays(self, pending: int) -> bool:
        """Whether so many events that lie behind are better read than pulled."""
        if pending < FAR or self._forbidden or not self._durable.can_be_moved:
            return False
        return 1 < len(self._spec.filters) <= MOST_FILTERS

    def forbid(self) -> None:
        """The server does not permit it: from now on, it never pays."""
        self._forbidden = True

    async def present(self, floor: int, seam: int, take: Take) -> dict[str, Any]:
        """Hand out the present values as of the seam, and return when all have been handled.

        Returns what the server says of the consumer then.
        """
        async with self._saving(floor):
            async with aclosing(present_values(self._log, self._spec.filters, seam, after=floor)) as values:
                async for value in values:
                    await self._room()
                    take(*value)
            while self._progress.outstanding:
                await self._wait()
        info = await self._durable.ask("RESET", {"seq": seam + 1})
        self._progress.raise_floor(seam)
        return info

    async def backlog(self, start: int, take: Callable[[Record], None]) -> dict[str, Any]:
        """Hand out the events from ``start`` on until few are left, and let the consumer go on there.

        Returns what the server says of the consumer then. Events that are not handled by then come from it again.
        """
        async with self._saving(self._progress.floor or 0):
            while True:
                stop = int((await self._log.state())["last_seq"])
                # Another version may declare other filters at any time, for what is stored from then on: so they are
                # asked for after the end.
                filters = (await self._durable.ask("INFO"))["config"]["filter_subjects"]
                count = 0
                async with aclosing(backlog(self._log, filters, start, stop)) as blocks:
                    async for records in blocks:
                        count += len(records)
                        for record in records:
                            await self._room()
                            take(record)
                start = stop + 1
                if count < FAR:
                    break
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST):
                    while self._progress.outstanding:
                        await self._wait()
        if not self._progress.outstanding:
            self._progress.raise_floor(start - 1)
        return await self._durable.ask("RESET", {"seq": (self._progress.floor or 0) + 1})

    @asynccontextmanager
    async def _saving(self, floor: int) -> AsyncIterator[None]:
        """Let the consumer remember now and then how far everything is, beside what is done meanwhile."""
        self._saver = asyncio.create_task(self._save(floor), name=f"saving the floor of {self._spec.name}")
        try:
            yield
        finally:
            self._saver.cancel()
            await asyncio.gather(self._saver, return_exceptions=True)

    async def _save(self, saved: int) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY)
            floor = self._progress.floor or 0
            if floor != saved and self._may():
                await self._durable.ask("RESET", {"seq": floor + 1})
                saved = floor

    async def _room(self) -> None:
        """Return when one more event may be handed out; of a window that was full, a part is free then."""
        if self._progress.is_brimful:
            while self._progress.is_full:
                await self._wait()

    async def _wait(self) -> None:
        """Wait until some of what was handed out is done. Raises what kept the floor from being saved."""
        self.moved.clear()
        moving = asyncio.ensure_future(self.moved.wait())
        try:
            await asyncio.wait([moving, self._saver], return_when=asyncio.FIRST_COMPLETED)
            if self._saver.done():
                self._saver.result()
        finally:
            moving.cancel()
