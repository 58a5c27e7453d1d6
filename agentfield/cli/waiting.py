"""Running a command's coroutine: the one event loop of the process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine to its end. Of errors that came together, the first is raised.

    What the library logs while a command of seconds runs would only repeat the command's own outcome; those that
    run for long configure logging for themselves.
    """
    logging.getLogger("agentfield").addHandler(logging.NullHandler())
    try:
        return asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
