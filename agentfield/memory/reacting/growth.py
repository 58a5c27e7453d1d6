"""Growth: a handler whose writes start it again, several times each, reported long before the limit on depth.

Owns: noticing that one write of a handler leads to ever more runs of it. Samples tell: of every so many events that
handlers led to, one is followed back through the log, to the handler's first write in its chain. A loop without
branches has one event at each depth after that, whatever had spread before. One that walks a tree branches on purpose;
so nothing is stopped. Must not know: what is done about it. Invariants: events that no handler led to cost nothing;
what is logged is bounded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from agentfield.codec import Record
from agentfield.errors import AgentFieldError
from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.memory.causes import chain
from agentfield.memory.reacting.loops import step, told, written_by

logger = logging.getLogger("agentfield.handlers")

_EVERY = 250
"""Events that two handlers or more led to, of which one is followed back."""
_SAMPLES = 32
"""The last so many of these are remembered."""
_SAME = 3
"""So many of them at the same depth after the same write: some hundred events lie there."""
_STEPS = 8
"""Steps of the chain that the report is made from."""
_LOGGED_EVERY = 60.0


class Growth:
    """Watches what leads to the runs of one handler of an agent."""

    def __init__(self, fabric: Fabric, *, agent: str, handler: str, limit: int, clock: Callable[[], float]) -> None:
        self._fabric = fabric
        self._name = f"{agent}.{handler}"
        self._limit = limit
        self._clock = clock
        self._count = 0
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=_SAMPLES)
        self._logged_at: float | None = None

    def is_due(self, event: Event) -> bool:
        """Whether this event should be looked at."""
        if event.writer.depth < 2:
            return False
        self._count += 1
        return self._count % _EVERY == 0

    async def look(self, record: Record) -> None:
        """Follow an event back, and report if many others are as far from the same write of this handler."""
        links: list[Event] = []
        try:
            async for link in chain(self._fabric, record, values=False):
                if isinstance(link, Event):
                    links.append(link)
        except AgentFieldError as error:
            logger.debug("%s: following an event back: %s", self._name, error)
            return
        own = [link.revision for link in links if link.writer.depth and written_by(link) == self._name]
        if not own:
            return
        sample = (own[-1], links[0].writer.depth, record.sequence)
        if sample not in self._samples:  # not the same event, tried again
            self._samples.append(sample)
        if [each[:2] for each in self._samples].count(sample[:2]) >= _SAME:
            self._report(links)

    def _report(self, links: Sequence[Event]) -> None:
        now = self._clock()
        if self._logged_at is not None and now < self._logged_at + _LOGGED_EVERY:
            return
        self._logged_at = now
        first = links[-1]
        logger.warning(
            "handler %s starts itself more and more often, by what it writes; it began with %s (revision %d): %s. "
            "That ends only when %d handlers have started one another. If it is not meant, stop the agent; "
            "`agentfield handlers remove` forgets what waits",
            self._name, first.key, first.revision, told([step(each) for each in links[:_STEPS] if each.writer.depth]),
            self._limit,
        )  # fmt: skip
