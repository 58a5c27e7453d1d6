"""A turn: what an instance does from the moment it gains the pin until it loses it, or has had nothing to do for long.

Owns: pulling events, or reading them where that is faster, and keeping the pin meanwhile. Must not know: how a pin is
gained. Invariants: events are handed out in the order of the log; no more than a window of them is here at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from agentfield.codec import Record
from agentfield.errors import AccessDeniedError, ResyncRequired
from agentfield.fabric import records
from agentfield.fabric.consumers.acknowledging import Acknowledging
from agentfield.fabric.consumers.consuming import Activated, ConsumerSpec
from agentfield.fabric.consumers.durable import Durable
from agentfield.fabric.consumers.feeding import Feeding
from agentfield.fabric.consumers.gaps import Gaps
from agentfield.fabric.consumers.handing import Handing
from agentfield.fabric.consumers.progress import WINDOW, Advance
from agentfield.fabric.consumers.pulling import Pulls
from agentfield.fabric.log import Log
from agentfield.fabric.wire.message import Message

logger = logging.getLogger("agentfield.consumer")

_PULL = 1.0
"""Seconds a pull stays open, or a little more or less; each new one renews the pin, so a third of its timeout."""
_SILENCE = 2.5
"""Seconds without a word on an open pull after which it counts as lost."""
_REST = 5.0
"""Seconds without an event after which the pin is not worth renewing: the next event gives one to whoever takes it."""


class Turn:
    """One turn of an instance of a consumer, which was just reset: ``reset`` is what the server said of it."""

    def __init__(
        self,
        log: Log,
        spec: ConsumerSpec,
        reset: Mapping[str, Any],
        *,
        handing: Handing,
        durable: Durable,
        pulls: Pulls,
        acks: Acknowledging,
        gaps: Gaps,
    ) -> None:
        self._log = log
        self._connection = log.connection
        self._spec = spec
        self._handing = handing
        self._progress = handing.progress
        self._durable = durable
        self._pulls = pulls
        self._acks = acks
        self._gaps = gaps
        self._feeding = Feeding(log, spec, durable, self._progress, lambda: handing.active)
        self._received = int(reset["reset_seq"]) - 1
        self._pending = int(reset["num_pending"])
        self._behind = self._was_behind = True
        self._pulled: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._busy = self._loop.time()
        self.fed = False
        """Whether events are handed out that do not come by pulls, of which nothing is acknowledged."""

    @property
    def _floor(self) -> int:
        return self._progress.floor or 0

    def moved(self, *, room: bool) -> None:
        """What was handed out is done: all, or so much that there is ``room`` again in a window that was full."""
        if room:
            self._pulls.wake.set()
        self._feeding.moved.set()

    async def begin(self) -> None:
        """Hand out what comes first: what is missing, where to begin, present values. Raises as :meth:`go_on`."""
        floor = self._received
        await self._look_for_gap(floor, exact=False)
        if (seam := self._durable.seam) is not None and floor < seam:
            info = await self._feed(self._feeding.present(floor, seam, self._take_present))
            floor = self._received = seam
            self._pending = int(info["num_pending"])
        self._handing.emit(Activated(floor))
        self._behind = True

    async def go_on(self) -> None:
        """Hand out events, until there have been none for long and all of them are handled.

        Raises a fault, or a kin of AgentFieldError, when the pin is lost or in doubt.
        """
        self._busy = self._loop.time()
        while not self._is_done():
            sent = self._loop.time()
            if self._handing.draining or self._progress.is_full:
                await self._keep_pin(sent)
                await self._room(max(_PULL / 10, sent + _PULL - self._loop.time()))
                self._behind = True
            elif self._feeding.pays(self._pending):
                await self._catch_up()
            else:
                await self._pull_events(sent)

    def take(self, message: Message) -> None:
        """Hand out an event that came while the pin was not renewed."""
        self._accept(message)

    async def renew(self) -> None:
        """Have the pin renewed, and wait until the server says that it is. Raises as :meth:`go_on`."""
        await self._keep_pin(self._loop.time(), expires=0)

    def _is_done(self) -> bool:
        now = self._loop.time()
        if self._progress.outstanding or self._handing.draining or not self._acks.said:
            self._busy = now
        return now >= self._busy + _REST

    async def _pull_events(self, sent: float) -> None:
        """One pull, for as many events as there is room for."""
        received, last, room = self._received, self._log.last_known, WINDOW - self._progress.outstanding
        self._was_behind, self._pulled = self._behind, []
        number = await self._pulls.request(pin=self._handing.pin, batch=room, expires=self._open_for())
        await self._answers(number, sent, room)
        if self._was_behind:
            await self._look_for_gap(received)
        if self._pulled:
            self._busy = self._loop.time()
        else:  # there was nothing: not at the end of this pull, nor at its beginning
            self._gaps.nothing_until(last)
            self._behind = False

    def _open_for(self) -> float:
        """About so long a pull stays open: all of one connection end together, so that one wake-up renews them all."""
        left = _PULL * (1 - (self._loop.time() / _PULL + self._connection.phase) % 1)
        return left if left > _PULL / 4 else left + _PULL

    async def _catch_up(self) -> None:
        """Hand out what lies far behind. From here on the consumer counts anew: no old acknowledgement is sent."""
        self._acks.forget()
        self._progress.forget_replies()
        self._pulled = []
        start = max(self._received + 1, self._gaps.log_start)
        self._pending, self._behind = 0, True
        try:
            info = await self._feed(self._feeding.backlog(start, self._take))
            self._pending = int(info["num_pending"])
        except ResyncRequired:
            await self._look_for_gap(self._received)
            await self._durable.ask("RESET", {"seq": self._floor + 1})
        except AccessDeniedError as error:
            logger.info(
                "consumer %s: catching up takes longer without the permission to read: %s", self._spec.name, error
            )
            self._feeding.forbid()
            await self._durable.ask("RESET", {"seq": self._floor + 1})

    async def _feed(self, feeding: Coroutine[Any, Any, Any]) -> Any:
        """Hand out what does not come by pulls, and return when that has ended; the pin is kept meanwhile."""
        self.fed = True
        task = asyncio.create_task(feeding, name=f"feeding {self._spec.name}")
        try:
            while not task.done():
                sent = self._loop.time()
                await self._keep_pin(sent)
                await asyncio.wait([task], timeout=max(_PULL / 10, sent + _PULL - self._loop.time()))
            outcome = await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.fed = False
        return outcome

    async def _keep_pin(self, sent: float, expires: float = _PULL) -> None:
        """A pull that no event can satisfy still renews the pin: the server answers it with a status."""
        number = await self._pulls.request(pin=self._handing.pin, batch=1, expires=expires, max_bytes=1)
        await self._answers(number, sent, 1)

    async def _answers(self, number: int, sent: float, owed: int) -> None:
        """Everything that one pull brings, until the server ends it or it is complete; each answer proves the lease."""
        while owed > 0:
            message = await self._pulls.receive(_SILENCE)
            ended = bool(message.status) and self._pulls.ends(message, number)
            if message.status and not ended:
                continue
            self._handing.renew(sent)
            if ended:
                return
            owed -= 1
            self._accept(message)

    def _accept(self, message: Message) -> None:
        delivery = records.of_consumer(message)
        sequence = delivery.record.sequence
        self._pending = delivery.pending
        if sequence <= self._received:
            self._accept_again(sequence, delivery.reply)
            return
        self._received = sequence
        self._pulled.append(sequence)
        self._behind = delivery.pending > 0
        self._was_behind = self._was_behind or self._behind
        self._handing.emit(self._progress.receive(delivery.record, delivery.reply))

    def _accept_again(self, sequence: int, reply: str) -> None:
        """What we have already came again: the consumer was reset. From now on only its new replies count."""
        if not self._progress.renew(sequence, reply) and sequence <= self._floor:
            self._acks.floor(Advance(1, reply))

    def _take(self, record: Record) -> None:
        self._received = record.sequence
        self._handing.emit(self._progress.receive(record))

    def _take_present(self, record: Record, previous: Record | None) -> None:
        self._handing.emit(self._progress.receive_present(record, previous))

    async def _look_for_gap(self, received: int, *, exact: bool = True) -> None:
        gap = await self._gaps.look(received, self._pulled, exact=exact)
        if gap is not None:
            self._handing.emit(gap)

    async def _room(self, seconds: float) -> None:
        """Wait until there is room in the window, at most until the pin wants renewing."""
        wake = self._pulls.wake
        try:
            async with asyncio.timeout(seconds):
                while self._handing.draining or self._progress.is_full:
                    wake.clear()
                    await wake.wait()
        except TimeoutError:
            return
