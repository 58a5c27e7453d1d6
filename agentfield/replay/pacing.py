"""Pacing: when the next event of a replay has its turn.

Owns: the distances between events, as they were or shortened. Must not know: what is done with an event, nor which
clock runs: it is passed in. Invariant: distances are counted from the first event on and never from the last wait, so
that a replay that was held up catches up, and does not drift.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentfield.codec import Record

_SECOND = 1_000_000_000


class Pace(Protocol):
    """What decides when an event has its turn. Each is asked about once by ``turn``, in order."""

    def is_due(self, record: Record) -> bool:
        """Whether ``turn`` would return at once."""
        ...

    async def turn(self, record: Record, previous: Record | None) -> bool:
        """Return when it is the event's turn: True; or False if it and all that follow are not wanted."""
        ...


class AtOnce:
    """No distance at all."""

    def is_due(self, record: Record) -> bool:
        """Always."""
        return True

    async def turn(self, record: Record, previous: Record | None) -> bool:
        """At once."""
        return True


class AsRecorded:
    """The recorded distances, ``speed`` times as fast; none longer than ``longest`` seconds.

    ``clock`` gives seconds that only grow, ``sleep`` waits for so many of them.
    """

    def __init__(
        self,
        speed: float = 1.0,
        longest: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._speed = speed
        self._longest = longest
        self._clock = clock
        self._sleep = sleep
        self._last: tuple[int, float] | None = None

    def is_due(self, record: Record) -> bool:
        """Whether its time has come."""
        return self._due(record) <= self._clock()

    async def turn(self, record: Record, previous: Record | None) -> bool:
        """Wait for its time."""
        due = self._due(record)
        self._last = record.timestamp, due
        left = due - self._clock()
        if left > 0:
            await self._sleep(left)
        return True

    def _due(self, record: Record) -> float:
        if self._last is None:
            return self._clock()
        before, due = self._last
        gap = max(0, record.timestamp - before) / _SECOND / self._speed
        return due + (gap if self._longest is None else min(gap, self._longest))
