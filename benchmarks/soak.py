"""``python -m benchmarks.soak``: writers, handlers and restarts for a long time; nothing lost, and memory flat.

Writers count keys up, by compare-and-set and with values that expire beside. One agent follows them undisturbed, another
is stopped or killed every now and then, and so is the server. In the end every agent must have come as far as the
writers did, in order, without a gap; this is checked, and a failure fails the run. The sizes of the processes are
printed as they go, and how much each grew from the second quarter to the last; that is for people to judge.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console

import agentfield
from agentfield import AgentFieldError, Memory
from agentfield.local import Server, ensure_server, stop_server
from benchmarks.report import Table
from benchmarks.serving import megabytes, served
from benchmarks.surroundings import NAMESPACE, Surroundings, surroundings

KEYS = 100
AGENTS = ("steady", "restarted")
_AGENT = Path(__file__).with_name("soak_agent.py")
_WRITERS = 4
_PAUSE = 0.01
"""Seconds a writer rests after each write: the soak is about time, not about load."""
_DISTURBED_EVERY = 20.0
_LOOKED_AT_EVERY = 5.0
_CATCH_UP = 120.0
"""Seconds in which handlers must come to the end once writing has ended."""


@dataclass(slots=True)
class Tally:
    """What has happened so far."""

    written: int = 0
    refused: int = 0
    disturbances: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[float]] = field(default_factory=dict)

    def disturbed(self, how: str) -> None:
        self.disturbances[how] = self.disturbances.get(how, 0) + 1


def main() -> None:
    """Run for the given time; exit 1 if anything was lost, out of order, or not caught up with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to write (default: 10)")
    minutes = parser.parse_args().minutes
    if not asyncio.run(_soak(minutes, Console(width=None if sys.stdout.isatty() else 110))):
        sys.exit(1)


async def _soak(minutes: float, console: Console) -> bool:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    tally = Tally()
    async with surroundings(quick=False) as here, AsyncExitStack() as stack:
        memory = await stack.enter_async_context(agentfield.connect(here.url, namespace=NAMESPACE))
        steady = await stack.enter_async_context(served(here, _AGENT, AGENTFIELD_SOAK_AGENT=AGENTS[0]))
        restarted = await stack.enter_async_context(_Restarted(here))
        begun = time.monotonic()
        ending = begun + minutes * 60
        async with asyncio.TaskGroup() as tasks:
            for writer in range(_WRITERS):
                tasks.create_task(_write(memory, range(writer, KEYS, _WRITERS), ending, tally))
            tasks.create_task(_disturb(here, restarted, ending, tally))
            tasks.create_task(_watch(here, steady, begun, ending, tally, console))
        console.print(f"{tally.written:,} writes ({tally.refused} refused while the server was away); catching up")
        faults = await _verify(memory)
    console.print()
    _report(tally).show(console)
    for fault in faults:
        console.print(f"[red]{fault}[/]")
    console.print("[red]failed[/]" if faults else "every event was handled, in order, by both agents")
    return not faults
