"""The server's clock, as it is known here.

Owns: what answers of the server say about its time. Must not know: our own wall clock, which may be wrong, or set while
we run; a loop's time only grows. Pure. Invariants: the server's time lies between :meth:`ServerClock.earliest` and
:meth:`ServerClock.latest`, unless it was set since the last answer; a slow answer never makes the clock worse.
"""

from __future__ import annotations

_DRIFT = 0.0005
"""Seconds a second by which two clocks may drift apart (as fast as NTP ever slews one)."""


class ServerClock:
    """Bounds for the difference between the server's time (nanoseconds since the epoch) and ours (a loop's, seconds).

    An answer that says what time it is was made between the sending of its request and its arrival. So it bounds the
    difference from both sides, and what several answers agree on bounds it more closely than any one of them.
    """

    def __init__(self) -> None:
        self._low = self._high = self._checked = 0

    def observe(self, sent: float, server: int, received: float) -> None:
        """Take in an answer: when it was asked for and when it came, and the time that the server gave in it."""
        drift = int(_nanoseconds(received - sent) * _DRIFT)
        low, high = server - _nanoseconds(received) - drift, server - _nanoseconds(sent) + drift
        drift = self._drift(_nanoseconds(received))
        known_low, known_high = self._low - drift, self._high + drift
        if self._checked and known_low <= high and low <= known_high:
            low, high = max(low, known_low), min(high, known_high)
        # Otherwise the server's clock was set, or another server answers now: only this answer counts.
        self._low, self._high, self._checked = low, high, _nanoseconds(received)

    def now(self, ours: float) -> int:
        """The likeliest time of the server at our time."""
        return _nanoseconds(ours) + (self._low + self._high) // 2

    def earliest(self, ours: float) -> int:
        """A time that the server has surely reached at our time."""
        at = _nanoseconds(ours)
        return at + self._low - self._drift(at)

    def latest(self, ours: float) -> int:
        """A time that the server has surely not passed at our time."""
        at = _nanoseconds(ours)
        return at + self._high + self._drift(at)

    def _drift(self, at: int) -> int:
        return int(max(0, at - self._checked) * _DRIFT)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
