"""Waiting for a condition, always with a deadline. Knows nothing of agents."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_SHORTEST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


@overload
async def eventually(condition: Callable[[], Awaitable[T | None]], *, within: float = ..., what: str = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], *, within: float = ..., what: str = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float = 5.0, what: str = "") -> Any:
    """Ask until the answer is true, and return it.

    ``condition`` is a plain or an async function; an AssertionError inside it means "not yet", any other exception ends
    the wait. An async condition that hangs is cancelled at the deadline. After ``within`` seconds, raises an
    AssertionError that says ``what`` was waited for (default: the condition's name) and what the last answer was.
    """
    deadline = time.monotonic() + within
    pause = _SHORTEST_PAUSE
    while True:
        last: Any
        try:
            last = condition()
            if inspect.isawaitable(last):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    last = await last
        except (AssertionError, TimeoutError) as error:
            last = error
        else:
            if last:
                return last
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__qualname__", repr(condition))
            cause = last if isinstance(last, BaseException) else None
            raise AssertionError(f"not within {within:g} s: {name} (the last answer was {last!r})") from cause
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
