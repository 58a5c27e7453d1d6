"""``python -m benchmarks.soak``: writers, handlers and restarts for a long time; nothing lost, and memory flat.

Writers count keys up, and leave values that expire beside them. One agent follows the counters undisturbed; another is
stopped or killed every now and then, and so is the server. In the end both agents must have come as far as the writers
did, in order and without a gap: that is checked, and fails the run. How much the processes grew from the second quarter
of the time to the last is printed, for people to judge.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console

import agentfield
from agentfield import Memory, OutcomeUnknownError, UnavailableError
from agentfield.execution import new_id
from agentfield.local import ensure_server, find_server, stop_server
from benchmarks.report import Table
from benchmarks.serving import megabytes, served
from benchmarks.surroundings import NAMESPACE, Surroundings, surroundings

_KEYS = 100
_WRITERS = 4
_AGENT = Path(__file__).with_name("soak_agent.py")
_PAUSE = 0.02
"""Seconds a writer rests after each write: the soak is about time, not about load."""
_EXPIRING_EVERY = 10
_DISTURBED_EVERY = 20.0
_LOOKED_AT_EVERY = 5.0
_CATCH_UP = 180.0
"""Seconds in which the handlers must come to the end once writing has ended."""


@dataclass(slots=True)
class _Tally:
    """What has happened so far."""

    counters: list[int] = field(default_factory=lambda: [0] * _KEYS)
    tried_again: int = 0
    disturbances: Counter[str] = field(default_factory=Counter)
    sizes: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    """Run for the given time; exit 1 if anything was lost, came out of order, or was not caught up with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to write (default: 10)")
    minutes = parser.parse_args().minutes
    if not asyncio.run(_soak(minutes * 60, Console(width=None if sys.stdout.isatty() else 110))):
        sys.exit(1)


async def _soak(seconds: float, console: Console) -> bool:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that servers are stopped
    tally = _Tally()
    async with surroundings(quick=False) as here, AsyncExitStack() as stack:
        memory = await stack.enter_async_context(agentfield.connect(here.url, namespace=NAMESPACE, timeout=30))
        steady = await stack.enter_async_context(served(here, _AGENT, SOAK_AGENT="steady"))
        restarted = _Restarted(here)
        stack.push_async_callback(restarted.stop)
        await restarted.start()
        ending = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for writer in range(_WRITERS):
                tasks.create_task(_write(memory, range(writer, _KEYS, _WRITERS), ending, tally))
            tasks.create_task(_disturb(here, restarted, ending, tally))
            tasks.create_task(_watch(here, steady, ending, tally, console))
        console.print("catching up")
        faults = [*await _faults(memory, "steady", tally), *await _faults(memory, "restarted", tally)]
    console.print()
    _report(seconds, tally).show(console)
    for fault in faults:
        console.print(f"[red]{fault}[/]")
    console.print("[red]failed[/]" if faults else "  every event was handled, in order, by both agents")
    return not faults


async def _write(memory: Memory, keys: Iterable[int], ending: float, tally: _Tally) -> None:
    """Count these keys up, each number stored exactly once, whatever happens to the server meanwhile."""
    mine = list(keys)
    while time.monotonic() < ending:
        key = random.choice(mine)
        number, event_id = tally.counters[key] + 1, new_id()
        while True:
            try:
                await memory.set(f"counter_{key}", number, event_id=event_id)
                break
            except (UnavailableError, OutcomeUnknownError):
                tally.tried_again += 1
        tally.counters[key] = number
        if number % _EXPIRING_EVERY == 0:
            await memory.set(f"passing_{key}_{number}", "x" * 100, ttl=5.0)
        await asyncio.sleep(_PAUSE)


class _Restarted:
    """An agent's process that is not left alone."""

    def __init__(self, here: Surroundings) -> None:
        self._here = here
        self._life: AsyncExitStack | None = None
        self._process: psutil.Process | None = None

    async def start(self) -> None:
        self._life = AsyncExitStack()
        self._process = await self._life.enter_async_context(served(self._here, _AGENT, SOAK_AGENT="restarted"))

    async def stop(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            await life.aclose()

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        await self.stop()


async def _disturb(here: Surroundings, restarted: _Restarted, ending: float, tally: _Tally) -> None:
    """Stop and kill the agent, and restart the server, in turn, until the time is up."""
    for disturbance in ("agent stopped", "agent killed", "server restarted") * 10_000:
        if time.monotonic() + _DISTURBED_EVERY > ending:
            return
        await asyncio.sleep(_DISTURBED_EVERY)
        if disturbance == "server restarted":
            await stop_server(here.home)
            await ensure_server(here.home)
        else:
            await (restarted.kill() if disturbance == "agent killed" else restarted.stop())
            await restarted.start()
        tally.disturbances[disturbance] += 1


async def _watch(here: Surroundings, steady: psutil.Process, ending: float, tally: _Tally, console: Console) -> None:
    """Note and print how large everybody is."""
    while time.monotonic() < ending:
        await asyncio.sleep(_LOOKED_AT_EVERY)
        server = find_server(here.home)
        sizes = {
            "the writers' process": megabytes(psutil.Process()),
            "the steady agent": megabytes(steady),
            "the server": megabytes(psutil.Process(server.pid)) if server is not None else 0.0,
        }
        tally.sizes.append(sizes)
        if len(tally.sizes) % 6 == 1:
            shown = ", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items())
            console.print(f"{ending - time.monotonic():5.0f} s to go: {sum(tally.counters):,} written; {shown}")


async def _faults(memory: Memory, agent: str, tally: _Tally) -> list[str]:
    """What an agent did not see, or should not have seen; waits for it to come to the end."""
    own = memory.actor(agent)
    wanted = {f"came_{key}": number for key, number in enumerate(tally.counters) if number}
    deadline = time.monotonic() + _CATCH_UP
    # Asking is the only way to know: it is another process that makes it true.
    while (came := await own.get_many(wanted)) != wanted and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    behind = [
        f"{agent}: {key} is {came.get(key)}, not {number}" for key, number in wanted.items() if came.get(key) != number
    ]
    wrong = [f"{agent}: {entry.key}: {entry.value}" async for entry in own.items("fault_*")]
    return [*behind, *wrong]


def _report(seconds: float, tally: _Tally) -> Table:
    written = sum(tally.counters)
    done = ", ".join(f"{how} {count} times" for how, count in tally.disturbances.items())
    table = Table(
        f"{seconds / 60:g} minutes: {written:,} writes; {done or 'undisturbed'}", ("then, MB", "in the end, MB")
    )
    quarter = max(1, len(tally.sizes) // 4)
    for name in tally.sizes[0] if tally.sizes else ():
        then = median(sizes[name] for sizes in tally.sizes[quarter : 2 * quarter] or tally.sizes)
        now = median(sizes[name] for sizes in tally.sizes[-quarter:])
        table.add(name, then, now, ratio=now / then if then else None)
    table.remarks.append(
        "Then: the second quarter of the time; in the end: the last. The server's log grows with every event."
    )
    table.remarks.append(f"{tally.tried_again} writes were tried again by the writers, each with its event id.")
    return table


if __name__ == "__main__":
    main()
