"""Serving agents until told to stop.

Owns: the two signals, and starting and stopping several agents of one process together. Must not know: what agents do.
Invariant: when :func:`serve` returns or raises, every agent it was given is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from agentfield.agent.agent import Agent
from agentfield.errors import InvalidInputError

logger = logging.getLogger("agentfield.running")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(agents: Sequence[Agent], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Serve the agents until SIGINT or SIGTERM, then drain and return; a second signal ends the process at once.

    Blocking; for the main thread. Raises InvalidInputError elsewhere and inside a running loop, and whatever starting
    an agent raises.
    """
    names = " and ".join(repr(agent.name) for agent in agents)
    if asyncio._get_running_loop() is not None:
        raise InvalidInputError(f"run() of {names} blocks, but a loop is running here: use `async with` instead")
    if threading.current_thread() is not threading.main_thread():
        raise InvalidInputError(f"run() of {names} waits for signals, in the main thread only: use `async with` here")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve_until_signal(agents))


async def serve(agents: Sequence[Agent], stop: asyncio.Event) -> None:
    """Serve the agents until ``stop`` is set, also while they are still starting; then drain and close all of them.

    Raises what starting one of them raises.
    """
    starting = asyncio.create_task(_start(agents), name="agentfield start")
    stopping = asyncio.create_task(stop.wait(), name="agentfield stop")
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await asyncio.gather(*(agent.aclose() for agent in agents))


async def _start(agents: Sequence[Agent]) -> None:
    for agent in agents:
        await agent.__aenter__()
        names = ", ".join(agent.reasoners) or "none"
        logger.info("agent %s serves in namespace %s; reasoners: %s", agent.name, agent.namespace, names)


async def _serve_until_signal(agents: Sequence[Agent]) -> None:
    stop = asyncio.Event()
    with _signals(asyncio.get_running_loop(), stop):
        await serve(agents, stop)


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on the first signal. The second one acts as if it had never been handled."""
    seen: list[int] = []

    # Not the loop's own signal handlers: those wait for the loop, and a second Ctrl-C is for when it is stuck.
    def on_signal(number: int, frame: FrameType | None) -> None:
        if seen:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        seen.append(number)
        loop.call_soon_threadsafe(finish, number)

    def finish(number: int) -> None:
        logger.info("%s: finishing what was begun; once more to end at once", signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
