"""Waiting for a condition, always with a deadline: the only place where tests let time pass."""

import time
from collections.abc import Callable
from typing import TypeVar

from agentfield.testing import eventually

__all__ = ["eventually", "wait_until"]

T = TypeVar("T")

_SHORTEST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


def wait_until(condition: Callable[[], T | None], *, within: float, what: str) -> T:
    """Do as `eventually` does outside an event loop, for fixtures that start and stop processes."""
    deadline = time.monotonic() + within
    pause = _SHORTEST_PAUSE
    while True:
        last: object
        try:
            last = condition()
        except AssertionError as error:
            last = error
        else:
            if last:
                return last
        if time.monotonic() >= deadline:
            cause = last if isinstance(last, BaseException) else None
            raise AssertionError(f"not within {within:g} s: {what} (the last answer was {last!r})") from cause
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
