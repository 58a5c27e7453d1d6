"""Insisting: what has to be done before anything else can go on is tried until it is done, however long that takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agentfield.errors import AgentFieldError, DecodeError, InvalidInputError

logger = logging.getLogger("agentfield.handlers")

FIRST_RETRY = 0.2
LONGEST_RETRY = 30.0
"""Seconds between the first and the second try, and between any two: the pauses double."""

_T = TypeVar("_T")
Unless = tuple[type[AgentFieldError], ...]
_HOPELESS: Unless = (DecodeError, InvalidInputError)


async def insist(who: str, step: Callable[[], Awaitable[_T]], doing: str = "", *, unless: Unless = _HOPELESS) -> _T:
    """What ``step`` returns, as soon as it does not fail; ``who`` and ``doing`` are for the log.

    Raises what no repetition mends: the errors in ``unless``.
    """
    delay = FIRST_RETRY
    while True:
        try:
            return await step()
        except unless:
            raise
        except AgentFieldError as error:
            logger.warning("handler %s: %s%s; trying again", who, f"{doing}: " if doing else "", error)
        await asyncio.sleep(delay)
        delay = min(LONGEST_RETRY, delay * 2)


def pause_before(attempt: int) -> float:
    """Seconds to wait before a second or later try of a handler; the first is number 0."""
    return min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(attempt - 1, 16))
