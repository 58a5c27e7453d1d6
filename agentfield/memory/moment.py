"""Moments: which part of the log a point in the past means, exactly.

Owns: how a time, an age or a revision becomes a sequence of the log, and the time by which expiries of then are judged;
and the proof that nothing up to it is missing. The log's times are finer than Python's: an event's ``timestamp`` is its
time cut to microseconds, and a point in time means every event whose ``timestamp`` is not after it. Invariant: a moment
found stays what it is, however often it is asked for and whatever is written meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from agentfield.amount import LARGEST
from agentfield.errors import HistoryTruncatedError, InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.log import Log

Point = datetime | timedelta | int
"""A moment, an age before now, or a revision."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_REST = 999
"""The last nanosecond of a microsecond, counted from its first."""
_AHEAD = 1_000_000_000
"""Nanoseconds by which a time may lie ahead of the server's clock and is waited for: as far as clocks may differ."""


class Moment(BaseModel):
    """A moment of the past: the last revision that belongs to it, and its time."""

    model_config = ConfigDict(frozen=True)

    revision: int
    """Events up to this one, itself included, had happened; 0 for none."""
    timestamp: datetime | None
    """The time that was asked for, or that of the event of that revision: aware, UTC. None before the first event."""


class Instant(NamedTuple):
    """The same as the log has it."""

    sequence: int
    nanoseconds: int
    """Since the epoch: a value was there then if it expired later than this."""

    @property
    def moment(self) -> Moment:
        """As users see it."""
        at = _EPOCH + timedelta(microseconds=self.nanoseconds // 1000) if self.nanoseconds else None
        return Moment(revision=self.sequence, timestamp=at)


def check_point(point: object, name: str, *, others: str = "") -> None:
    """Raises InvalidInputError unless this is a point in the log: an aware datetime, or a revision.

    ``others``: what else would have been right.
    """
    if isinstance(point, datetime) and point.tzinfo is None:
        raise InvalidInputError(f"{name}={point!r} has no time zone: use an aware datetime, e.g. datetime.now(UTC)")
    if not isinstance(point, datetime) and (type(point) is not int or not 0 <= point <= LARGEST):
        raise InvalidInputError(f"{name}={point!r}: an aware datetime,{others} or a revision")


class Pin:
    """A point in the past that is looked up when it is first needed, and then stays. Raises InvalidInputError."""

    def __init__(self, point: Point, name: str) -> None:
        if not isinstance(point, timedelta):
            check_point(point, name, others=" an age as a timedelta,")
        elif point < timedelta(0):
            raise InvalidInputError(f"{name}={point!r} lies in the future: an age counts back from now")
        self._point = point
        self._name = name
        self._made = time.monotonic_ns()
        self._found: list[Instant] = []

    async def instant(self, fabric: Fabric) -> Instant:
        """The instant it means.

        Raises :class:`InvalidInputError` if it lies in the future, :class:`HistoryTruncatedError` if the log has lost
        it, :class:`UnavailableError`.
        """
        if not self._found:
            self._found.append(await self._look_up(fabric))
        return self._found[0]  # of several who look at once, the first one's answer counts for all

    async def _look_up(self, fabric: Fabric) -> Instant:
        log, point = fabric.log, self._point
        last = int((await log.state())["last_seq"])
        if isinstance(point, int):
            if point > last:
                raise InvalidInputError(f"{self._name}={point} lies in the future: the log's last revision is {last}")
            if point == 0:
                return Instant(0, 0)
            first = log.held.complete if point >= log.held.complete else await log.begins()
            record = await log.at(point) if point >= first else None
            if record is None:
                raise HistoryTruncatedError(requested=point, first_available=await log.begins())
            return Instant(point, record.timestamp)
        if isinstance(point, timedelta):
            now = log.now_at_most() - (time.monotonic_ns() - self._made)
            at = max(0, now // 1000 * 1000 - point // _MICROSECOND * 1000)
        else:
            at = max(0, (point - _EPOCH) // _MICROSECOND * 1000)
        await self._reached(log, at)
        sequence = await log.sequence_at(_EPOCH + timedelta(microseconds=at // 1000 + 1)) - 1
        if 1 < log.held.complete > sequence and (first := await log.begins()) > max(1, sequence):
            raise HistoryTruncatedError(requested=max(1, sequence), first_available=first)
        return Instant(sequence, at + _REST)

    async def _reached(self, log: Log, at: int) -> None:
        """Wait until nothing more can be stored that belongs to a time."""
        while (ahead := at + 1000 - log.now_at_least()) > 0:
            if ahead > _AHEAD and not isinstance(self._point, timedelta):
                now = Instant(0, log.now()).moment.timestamp
                raise InvalidInputError(f"{self._name}={self._point} lies in the future: for the server, it is {now}")
            await asyncio.sleep(ahead / 1e9)


async def check_whole(fabric: Fabric, instant: Instant) -> None:
    """Raises HistoryTruncatedError if events from before an instant are lost, or were just taken out of the log.

    Of a key that has none left from then, nobody can say whether it had a value: so ask after reading.
    """
    log = fabric.log
    before = log.held.known
    await log.state()
    if not instant.sequence or instant.sequence >= log.held.known:
        return
    first = await log.begins()
    if first > 1 or before != log.held.known:
        raise HistoryTruncatedError(requested=1, first_available=first)
