"""Calling: one run of a handler for one event, in its execution.

Owns: the context that the function runs in, the thread of one that is not async, and its time. Must not know: where the
event comes from, nor what is done about an error. Invariant: when it returns, the function has returned, and what it
wrote lies as this run meant it, whatever a failed one before had written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentfield import execution
from agentfield.event import Event
from agentfield.execution import Execution
from agentfield.memory.reacting.registration import Registration


async def call(registration: Registration, event: Event, here: Execution) -> None:
    """Run the handler in that execution. Raises what it raises, and TimeoutError when its time is up."""
    token = execution.current.set(here)
    try:
        if registration.timeout is None:
            await _run(registration, event)
        else:
            limit = asyncio.timeout(registration.timeout)
            try:
                async with limit:
                    await _run(registration, event)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise TimeoutError(f"it took longer than its timeout={registration.timeout:g} s") from None
        if here.effects is not None and here.effects.is_repeated:
            await here.effects.restore()
    finally:
        execution.current.reset(token)


async def _run(registration: Registration, event: Event) -> None:
    if registration.is_async:
        await registration.function(event)
        return
    outcome = await asyncio.to_thread(_called, registration.function, event)
    if isinstance(outcome, Awaitable):
        await outcome


def _called(function: Callable[[Event], Any], event: Event) -> Any:
    try:
        return function(event)
    except StopIteration as stopped:  # no future can hold it: who awaits the thread would wait for ever
        raise RuntimeError("the function raised StopIteration").with_traceback(stopped.__traceback__) from stopped
