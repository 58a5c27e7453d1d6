"""Hearing events live, in one process: every instance every event, and nothing left on the server.

Owns: where such an instance begins, and that it goes on there after an interruption. Must not know: what an event means
or how it is handled. Invariants: every matching event from the beginning on is handed out once, in the order of the
log, or it is said that it was taken out of the log; no more than a window of events is held, and the rest stays on the
server.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import aclosing

from agentfield.errors import AccessDeniedError, AgentFieldError, ClosedError, ResyncRequired
from agentfield.fabric.backlog import FAR, MOST_FILTERS, backlog
from agentfield.fabric.consumers.beginning import beginning
from agentfield.fabric.consumers.consuming import Activated, ConsumerSpec, Item, Shortened
from agentfield.fabric.consumers.progress import Progress
from agentfield.fabric.jetstream import backoff
from agentfield.fabric.log import Log
from agentfield.fabric.reader import Reader
from agentfield.fabric.reading.present import present_values

logger = logging.getLogger("agentfield.consumer")


class LiveConsumer:
    """A :class:`~agentfield.fabric.consumers.consuming.Consumer` of this process alone."""

    def __init__(self, log: Log, spec: ConsumerSpec, *, progress: Progress | None = None) -> None:
        self._log = log
        self._spec = spec
        self._progress = progress or Progress()
        self._seam: int | None = None
        self._received = 0
        self._out: deque[Item] = deque()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._draining = False

    def successor(self) -> LiveConsumer:
        """One that goes on where this one was."""
        other = LiveConsumer(self._log, self._spec, progress=self._progress.successor())
        other._seam = self._seam
        return other

    async def ensure(self) -> None:
        """Fix where it begins. Raises :class:`UnavailableError`."""
        if self._progress.floor is not None:
            return
        state = await self._log.state()
        self._seam = int(state["last_seq"]) if self._spec.start == "current" else None
        self._progress.raise_floor(await beginning(self._log, self._spec.start, state) - 1)

    async def run(self) -> None:
        """Get events, until cancelled. Outlives outages."""
        await self._insist_on_beginning()
        attempt = 0
        while True:
            received = self._received
            try:
                if self._seam is not None and self.floor < self._seam:
                    await self._hand_out_present(self._seam)
                self._received = max(self._received, self.floor)
                await self._follow()
            except ClosedError:
                raise
            except AgentFieldError as error:
                level = logging.WARNING if isinstance(error, AccessDeniedError) else logging.DEBUG
                logger.log(level, "consumer %s: %r", self._spec.name, error)
                attempt = 0 if self._received > received else attempt + 1
                await asyncio.sleep(backoff(attempt))

    async def _insist_on_beginning(self) -> None:
        attempt = 0
        while self._progress.floor is None:
            try:
                await self.ensure()
            except ClosedError:
                raise
            except AgentFieldError as error:
                logger.debug("consumer %s: %r", self._spec.name, error)
                await asyncio.sleep(backoff(attempt))
                attempt += 1

    async def _hand_out_present(self, seam: int) -> None:
        """Hand out the present values, and return when all have been handled: only then do their changes follow."""
        after = max(self.floor, self._received)
        async with aclosing(present_values(self._log, self._spec.filters, seam, after=after)) as values:
            async for value in values:
                await self._have_room()
                self._received = value.record.sequence
                self._emit(self._progress.receive_present(*value))
        while self._progress.outstanding:
            self._room.clear()
            await self._room.wait()
        self._progress.raise_floor(seam)

    async def _follow(self) -> None:
        # Ahead of the log's end there is no state yet to begin with.
        stop = int((await self._log.state())["last_seq"])
        activated = self._received <= stop
        if activated:
            self._emit(Activated(self._received))
        try:
            if len(self._spec.filters) in range(2, MOST_FILTERS + 1) and stop - self._received >= FAR:
                await self._catch_up(stop)
            await self._go_on(activated=activated)
        except ResyncRequired as gap:
            self._emit(Shortened(gap.requested - 1, gap.first_available))
            self._received = gap.first_available - 1
            if not self._progress.outstanding:
                self._progress.raise_floor(self._received)

    async def _catch_up(self, stop: int) -> None:
        """Hand out the events up to ``stop``, which may be many. Raises :class:`ResyncRequired`."""
        try:
            async with aclosing(backlog(self._log, self._spec.filters, self._received + 1, stop)) as blocks:
                async for records in blocks:
                    for record in records:
                        await self._have_room()
                        self._received = record.sequence
                        self._emit(self._progress.receive(record))
        except ResyncRequired as gap:  # what one of the readers had come to is not what was handed out
            raise ResyncRequired(requested=self._received + 1, first_available=gap.first_available) from None
        self._received = max(self._received, stop)

    async def _go_on(self, *, activated: bool) -> None:
        """Hand out what comes, for ever."""
        reader = Reader(
            self._log.connection, self._log.stream, self._spec.filters, start=self._received + 1, gapless=True
        )
        async with reader, aclosing(reader.follow()) as following:
            async for record in following:
                if not activated:
                    self._emit(Activated(self._received))
                    activated = True
                await self._have_room()
                self._received = record.sequence
                self._emit(self._progress.receive(record))

    async def _have_room(self) -> None:
        """Return when one more event may be held; of a window that was full, a part is free then."""
        if self._progress.is_brimful:
            while self._progress.is_full:
                self._room.clear()
                await self._room.wait()

    def _emit(self, item: Item) -> None:
        self._out.append(item)
        self._ready.set()

    async def next(self) -> Item:
        """What to do next. Waits while there is nothing."""
        while not self._out or self._draining:
            self._ready.clear()
            await self._ready.wait()
        item = self._out.popleft()
        self._progress.begin(item)
        return item

    def done(self, sequence: int) -> None:
        """The event has been handled, or given up for good."""
        progress = self._progress
        was_full = progress.is_full
        progress.done(sequence)
        if (was_full and not progress.is_full) or not progress.outstanding:
            self._room.set()

    def put_back(self, sequence: int) -> None:
        """The event stays unhandled."""
        self._progress.end(sequence)

    def surely_ours(self, sequence: int) -> bool:
        """Nobody else handles it."""
        return True

    async def still_ours(self, sequence: int) -> bool:
        """Nobody else handles it."""
        return True

    async def reported(self, gap: Shortened) -> None:
        """Nothing is kept of that."""

    async def drain(self) -> None:
        """Hand out nothing more, and return when every event handed out is done."""
        self._draining = True
        await self._progress.idle()

    async def leave(self) -> None:
        """There is nothing to let go of: the reader went with ``run``."""

    async def learn_floor(self) -> None:
        """There are no others."""

    @property
    def floor(self) -> int:
        """The sequence up to which everything is known to have been handled here; 0 for nothing."""
        return self._progress.floor or 0

    def is_begun(self, sequence: int) -> bool:
        """Whether the event was handed out and is not done yet."""
        return self._progress.is_begun(sequence)

    def is_handled(self, sequence: int) -> bool:
        """Whether the event has been handled here, or came before the beginning."""
        return self._progress.is_handled(sequence)
