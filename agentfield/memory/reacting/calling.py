"""Calling: one run of a handler for one event, in its execution.

Owns: the context that the function runs in, the thread of one that is not async, and its time. Must not know: where the
event comes from, nor what is done about an error. Invariant: when it returns, the function has returned, and what it
wrote lies as this run meant it, whatever a failed one before had written.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from agentfield import execution
from agentfield.event import Event
from agentfield.execution import Execution
from agentfield.memory.reacting.registration import Registration

logger = logging.getLogger("agentfield.handlers")

_OVERDUE = 5.0
"""Seconds after its timeout that a handler may take to end before it is reported."""


async def call(registration: Registration, event: Event, here: Execution) -> None:
    """Run the handler in that execution. Raises what it raises, and TimeoutError when its time is up."""
    token = execution.current.set(here)
    try:
        limit = asyncio.timeout(registration.timeout)
        with _watched(registration, event):
            try:
                async with limit:
                    await _run(registration, event, limit)
            except TimeoutError:
                if not limit.expired():
                    raise
        if limit.expired():  # also if it has caught the cancellation, and returned
            raise TimeoutError(f"it took longer than its timeout={registration.timeout:g} s")
        if here.effects is not None and here.effects.is_repeated:
            await here.effects.restore()
    finally:
        execution.current.reset(token)


@contextmanager
def _watched(registration: Registration, event: Event) -> Iterator[None]:
    """Say so if the handler goes on long after its time is up: nothing else can be done about it."""
    if registration.timeout is None:
        yield
        return
    warning = partial(
        logger.warning,
        "handler %s still runs on %s (revision %d), %g s after its timeout=%g s: %s, and the key's next event waits",
        registration.name, event.key, event.revision, _OVERDUE, registration.timeout,
        "it catches its cancellation" if registration.is_async else "nothing stops a thread",
    )  # fmt: skip
    timer = asyncio.get_running_loop().call_later(registration.timeout + _OVERDUE, warning)
    try:
        yield
    finally:
        timer.cancel()


async def _run(registration: Registration, event: Event, limit: asyncio.Timeout) -> None:
    if registration.is_async:
        await registration.function(event)
        return
    run = partial(contextvars.copy_context().run, _called, registration.function, event)
    # Not by a task: one that is ended by SystemExit ends the loop as well.
    thread = asyncio.get_running_loop().run_in_executor(None, run)
    try:
        outcome = await asyncio.shield(thread)
    except asyncio.CancelledError:
        if limit.expired():  # nothing stops a thread: the next try, or the key's next event, waits until it is over
            await asyncio.wait([thread])
        raise
    if isinstance(outcome, Awaitable):
        await outcome


def _called(function: Callable[[Event], Any], event: Event) -> Any:
    try:
        return function(event)
    except StopIteration as stopped:  # no future can hold it: who awaits the thread would wait for ever
        raise RuntimeError("the function raised StopIteration").with_traceback(stopped.__traceback__) from stopped
