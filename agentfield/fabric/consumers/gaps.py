"""Events that were taken out of the log before they came.

Owns: finding that out, and not saying it twice. Only an operator can shorten the log, other than by trimming, which
spares what is still to come to a consumer. The server then moves a consumer's floor up to where the log begins: so a
floor that is there, if that is all that is known, says nothing of what was handled. Invariant: a gap may be reported in
which nothing was meant for us, but none goes unreported.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentfield.fabric.consumers.consuming import Shortened
from agentfield.fabric.consumers.durable import Durable
from agentfield.fabric.log import Log
from agentfield.fabric.records import nanoseconds_of
from agentfield.fabric.trimmed import lost_to


class Gaps:
    """What one instance of a consumer knows of them."""

    def __init__(self, log: Log, durable: Durable) -> None:
        self._log = log
        self._durable = durable
        self._nothing_until = 0
        self._announced = 0

    @property
    def log_start(self) -> int:
        """Where the log begins, as far as that is known or was announced."""
        return max(self._durable.log_start, self._announced)

    def nothing_until(self, sequence: int) -> None:
        """Up to here there is nothing that has not come."""
        self._nothing_until = max(self._nothing_until, sequence)

    def forget(self) -> None:
        """What was announced may not have been reported: announce it again."""
        self._announced = 0

    async def look(self, received: int, came: Iterable[int] = (), *, exact: bool = True) -> Shortened | None:
        """What to report, if events after ``received``, up to which all had come, may be gone before they came.

        ``came``: the sequences of those that have come since. Not ``exact``: that ``received`` is where the log now
        begins may be the server's doing.
        """
        start = int((await self._log.state())["first_seq"])
        if start <= self.log_start:
            return None
        made = nanoseconds_of((await self._durable.ask("INFO"))["created"])
        if lost_to(self._log.info["config"], self._log.info["state"], made) == 1:  # it was trimmed with regard to us
            await self._durable.note_log_start(start)
            return None
        if not exact and received == start - 1:
            received = 0
        known = max(self._nothing_until, received, *(sequence for sequence in came if sequence < start))
        if known < start - 1:
            self._announced = start
            return Shortened(known, start)
        await self._durable.note_log_start(start)
        return None
