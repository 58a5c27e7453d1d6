"""Waiting for a condition, always with a deadline: the only place where tests let time pass."""

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

    `condition` is a plain or an async function; an AssertionError inside it means "not yet", any other exception ends
    the wait. After `within` seconds the test fails and says `what` it waited for and what the last answer was. An async
    condition that hangs is cancelled at the deadline.
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
            raise AssertionError(_too_late(condition, within, what, last)) from _cause(last)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def wait_until(condition: Callable[[], T | None], *, within: float, what: str) -> T:
    """Do the same outside an event loop, for fixtures that start and stop processes."""
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
            raise AssertionError(_too_late(condition, within, what, last)) from _cause(last)
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _too_late(condition: Callable[[], Any], within: float, what: str, last: object) -> str:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return f"not within {within} s: {name} (the last answer was {last!r})"


def _cause(last: object) -> BaseException | None:
    return last if isinstance(last, BaseException) else None
