"""Ending tasks that run other people's code: a function may catch its cancellation, and go on.

Owns: how often such a task is cancelled, and when it is given up. Must not know: what the tasks do. Invariant: ending
takes a bounded time, whatever they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

CLEANING = 5.0
"""Seconds that a cancelled task has to clean up behind itself, undisturbed."""
_AGAIN = 1.0
_TIMES = 5
"""Seconds between further cancellations, and how many of them there are."""


async def end(tasks: Iterable[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Cancel the tasks, again and again if need be, and return when all are done, or after 10 s.

    Returns those that are still not done: nothing can end them, and `asyncio.run` waits for them as for any task. The
    outcomes of the others are for the caller to look at.
    """
    left = {task for task in tasks if not task.done()}
    for seconds in (CLEANING, *[_AGAIN] * _TIMES):
        if not left:
            break
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=seconds)
    return left
