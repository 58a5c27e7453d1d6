"""Loops: handlers that write what they react to, stopped before they melt the cluster.

Owns: the limit on how many handlers may start one another, and the report on a chain that reached it. Every write
carries its depth, so nothing has to be asked while all is well. Invariants: an event at the limit starts no handler;
what is logged about it is bounded, however many there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from agentfield.codec import Record
from agentfield.errors import AgentFieldError
from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.memory.causes import chain

logger = logging.getLogger("agentfield.handlers")

_LOOKED_AT = 24
"""Events of the chain that a report is made from: enough to see a cycle of twelve handlers twice."""
_NAMED = 4
"""Of these, how many are named if there is no cycle among them."""
_LOGGED_EVERY = 60.0
"""Seconds in which one handler logs one line about loops."""


class LoopDetected(Exception):
    """Handlers have started one another up to the limit. For the dead letters; nobody gets it raised."""


class LoopGuard:
    """Keeps one handler of an agent from starting for events that too many handlers led to."""

    def __init__(self, fabric: Fabric, handler: str, *, limit: int, clock: Callable[[], float]) -> None:
        self._fabric = fabric
        self._handler = handler
        self._limit = limit
        self._clock = clock
        self._logged_at: float | None = None
        self._kept_quiet = 0

    def is_reached(self, event: Event) -> bool:
        """Whether so many handlers led to the event that it must not start this one."""
        return event.writer.depth >= self._limit

    async def report(self, event: Event, record: Record) -> LoopDetected:
        """The report on an event at the limit, which also makes a line in the log."""
        found = LoopDetected(
            f"{event.writer.depth} handlers have started one another, each with what it wrote, and at most "
            f"{self._limit} may: {told(await self._steps(record))}"
        )
        self._log(event, found)
        return found

    async def _steps(self, record: Record) -> list[str]:
        """Which handler wrote which key, from the last write back."""
        steps: list[str] = []
        try:
            async for link in chain(self._fabric, record, values=False):
                if not isinstance(link, Event) or not link.writer.depth or len(steps) == _LOOKED_AT:
                    break
                steps.append(step(link))
        except AgentFieldError as error:  # the report is shorter then; the loop is stopped all the same
            logger.debug("handler %s: following a loop back: %s", self._handler, error)
        return steps

    def _log(self, event: Event, found: LoopDetected) -> None:
        now = self._clock()
        if self._logged_at is not None and now < self._logged_at + _LOGGED_EVERY:
            self._kept_quiet += 1
            return
        more = f" ({self._kept_quiet} more since the last such line)" if self._kept_quiet else ""
        self._logged_at, self._kept_quiet = now, 0
        logger.error(
            "handler %s is not run for %s (revision %d), which goes to the dead letters: loop detected: %s%s",
            self._handler, event.key, event.revision, found, more,
        )  # fmt: skip


def written_by(event: Event) -> str:
    """Which handler an event comes from; what a reasoner wrote counts as the handler's that the calls began with."""
    writer = event.writer
    return writer.path[0].partition("/")[0] if writer.path else f"{writer.agent}.{writer.function}"


def step(event: Event) -> str:
    """One step of a chain, in words."""
    return f"{written_by(event)} wrote {event.key}"


def told(steps: Sequence[str]) -> str:
    """The cycle, in the order in which it happens, if it can be seen twice; else the last few steps."""
    for length in range(1, len(steps) // 2 + 1):
        if all(steps[at] == steps[at - length] for at in range(length, len(steps))):
            return f"over and over, {', '.join(reversed(steps[:length]))}"
    return f"last, {', '.join(reversed(steps[:_NAMED]))}" if steps else "which ones could not be read"
