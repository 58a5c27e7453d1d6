"""The bookkeeping of a consumer: what was received, handed out and done, and how much may be held at once.

Must not know: how events come. Pure, but for the loop's events. Invariant: the floor is a sequence up to which
everything that was received has been done, and it only grows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from agentfield.codec import Record
from agentfield.fabric.consumers.consuming import Item, Received

WINDOW = 1000
"""Events that may be received and not yet handled."""
WINDOW_BYTES = 16 * 1024 * 1024
REFILL = WINDOW // 4
"""Ask for more when this much room has come free, so that requests stay few under load."""


class Slot:
    """An event received, and not yet below the floor."""

    __slots__ = ("done", "reply", "sequence", "size")

    def __init__(self, sequence: int, reply: str, size: int) -> None:
        self.sequence = sequence
        self.reply = reply
        self.size = size
        self.done = False


class Advance(NamedTuple):
    """What one event's being done moved the floor by."""

    events: int
    reply: str
    """Of the last event below the floor: where to acknowledge it."""


_STILL = Advance(0, "")


class Progress:
    """Which events were received, handed out and done, in the order of the log."""

    def __init__(self, floor: int | None = None) -> None:
        self.floor = floor
        """Everything up to this sequence is known to have been handled; None while nothing is known."""
        self.outstanding = 0
        self._bytes = 0
        self._above: set[int] = set()
        self._running: set[int] = set()
        self._window: deque[Slot] = deque()
        self._slots: dict[int, Slot] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_full(self) -> bool:
        """Whether no more should be asked for now."""
        return self.outstanding > WINDOW - REFILL or self._bytes > WINDOW_BYTES

    @property
    def is_brimful(self) -> bool:
        """Whether nothing more may be taken in, asked for or not."""
        return self.outstanding >= WINDOW or self._bytes > WINDOW_BYTES

    def raise_floor(self, floor: int) -> None:
        """Everything up to here was handled, by whomever, or is not wanted."""
        if self.floor is None or floor > self.floor:
            self.floor = floor
            self._above = {sequence for sequence in self._above if sequence > floor}

    def receive(self, record: Record, reply: str = "") -> Received:
        """Note an event that came; return what to hand out."""
        slot = Slot(record.sequence, reply, len(record.payload))
        self._slots[slot.sequence] = slot
        self._window.append(slot)
        self.outstanding += 1
        self._bytes += slot.size
        return Received(record, self.is_handled(slot.sequence))

    def receive_present(self, record: Record, previous: Record | None) -> Received:
        """Note a present value; return what to hand out."""
        return self.receive(record)._replace(present=True, previous=previous)

    def slot(self, sequence: int) -> Slot | None:
        """The slot of an event that was received and is not done."""
        slot = self._slots.get(sequence)
        return None if slot is None or slot.done else slot

    def renew(self, sequence: int, reply: str) -> bool:
        """Note that an event came again: now it is acknowledged there. False if it is not above the floor."""
        slot = self._slots.get(sequence)
        if slot is None:
            return False
        slot.reply = reply
        return True

    def forget_replies(self) -> None:
        """None of those that are known may be used any more."""
        for slot in self._window:
            slot.reply = ""

    def begin(self, item: Item) -> None:
        """Note that an item is handed out."""
        if isinstance(item, Received):
            if not self._running:
                self._idle.clear()
            self._running.add(item.record.sequence)

    def end(self, sequence: int) -> None:
        """Note that nobody works on an event any more."""
        self._running.discard(sequence)
        if not self._running:
            self._idle.set()

    def done(self, sequence: int) -> Advance:
        """Note that an event has been handled, and move the floor if all before it were."""
        self.end(sequence)
        slot, window = self._slots.get(sequence), self._window
        if slot is None or slot.done:
            if slot is None and not self.is_handled(sequence):
                self._above.add(sequence)  # it was received in an earlier turn: known as handled should it come again
            return _STILL
        slot.done = True
        self.outstanding -= 1
        self._bytes -= slot.size
        if slot is not window[0]:
            self._above.add(sequence)
            return _STILL
        count, head = 0, slot
        while window and window[0].done:
            head = window.popleft()
            del self._slots[head.sequence]
            if self._above:
                self._above.discard(head.sequence)
            count += 1
        if self.floor is None or head.sequence > self.floor:
            self.floor = head.sequence
        return Advance(count, head.reply)

    def is_begun(self, sequence: int) -> bool:
        """Whether the event was handed out and is not done yet."""
        return sequence in self._running

    def is_handled(self, sequence: int) -> bool:
        """Whether the event is known to have been handled, or came before the beginning."""
        return (self.floor is not None and sequence <= self.floor) or sequence in self._above

    def release(self) -> None:
        """Forget what was received and not done; it comes again. What is being handled is finished by its taker."""
        self._slots.clear()
        self._window.clear()
        self.outstanding = self._bytes = 0

    async def idle(self) -> None:
        """Return when everything handed out is done."""
        await self._idle.wait()

    def successor(self) -> Progress:
        """What is known, without what was received."""
        other = Progress(self.floor)
        other._above = set(self._above)
        return other
