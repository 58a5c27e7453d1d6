"""Handing out events to whoever takes them, as long as it is certain that they are this instance's to handle.

Owns: the queue between an active instance and its taker, and the lease: how long the pin is surely held, by the
monotonic clock of this process, counted from when the last pull that the server accepted was *sent*. Must not know:
where events come from. Invariant: a process that was paused for longer than the lease hands out nothing on waking.
"""

from __future__ import annotations

import asyncio
from collections import deque

from agentfield.fabric.consumers.consuming import Item
from agentfield.fabric.consumers.durable import PIN_TIMEOUT
from agentfield.fabric.consumers.progress import Progress


class Handing:
    """What one instance of a consumer hands out."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.pin = ""
        """By which the server knows this instance as the active one; empty while it is not."""
        self.draining = False
        """Whether nothing more is to be handed out."""
        self._lease_until = 0.0
        self._out: deque[Item] = deque()
        self._ready = asyncio.Event()
        self._certainty: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def active(self) -> bool:
        """Whether this instance surely holds the pin at this moment."""
        return bool(self.pin) and self._loop.time() < self._lease_until

    @property
    def is_new(self) -> bool:
        """Whether the pin was gained, and no pull with it has been answered yet."""
        return bool(self.pin) and not self._lease_until

    def begin(self, pin: str) -> None:
        """The pin is ours, but for how long is known only when a pull with it has been answered."""
        self.pin, self._lease_until = pin, 0.0

    def renew(self, sent: float) -> None:
        """The server has answered a pull that was sent at that time."""
        self._lease_until = sent + PIN_TIMEOUT
        self._ready.set()
        if self._certainty:
            self._wake_uncertain()

    def end(self) -> None:
        """The pin is lost or in doubt: forget what was received; what is being handled is finished by the taker."""
        self.pin = ""
        self._out.clear()
        self.progress.release()
        self._wake_uncertain()

    def emit(self, item: Item) -> None:
        """Hand this out, after all that was emitted before."""
        self._out.append(item)
        self._ready.set()

    async def next(self) -> Item:
        """What to do next. Waits while there is nothing, and while it is uncertain whether we are still active."""
        while not self._out or self.draining or not self.active:
            self._ready.clear()
            await self._ready.wait()
        item = self._out.popleft()
        self.progress.begin(item)
        return item

    def surely_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is at this moment, beyond doubt, this instance's to handle."""
        return self.active and self.progress.slot(sequence) is not None

    async def still_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is still this instance's to handle; waits while that is uncertain.

        When it is not, the event is forgotten here: the instance that is active now handles it.
        """
        while self.progress.slot(sequence) is not None:
            if self.active:
                return True
            certain = self._loop.create_future()
            self._certainty.add(certain)
            try:
                await certain
            finally:
                self._certainty.discard(certain)
        self.progress.end(sequence)
        return False

    def _wake_uncertain(self) -> None:
        for certain in self._certainty:
            if not certain.done():
                certain.set_result(None)
