"""Before anything happens: importing, starting the server, and an agent that has nothing to do."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import median

import agentfield
from agentfield.local import stop_server
from benchmarks.report import Table, Target
from benchmarks.serving import IDLE_AGENT, TOOL, megabytes, served
from benchmarks.surroundings import NAMESPACE, Surroundings

_SETTLING = 3.0
"""Seconds after its start from which on an agent counts as idle."""
_IMPORT = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"


async def importing(here: Surroundings) -> Table:
    """What ``import agentfield`` takes in a fresh process, and what the first use of an agent adds."""
    found: dict[str, list[float]] = {"import agentfield": [], "from agentfield import Agent": []}
    for _ in range(here.scale(15, 5)):
        for statement, taken in found.items():
            taken.append(float(await _output(sys.executable, "-c", _IMPORT.format(statement))))
    table = Table("importing, in a fresh process", ("ms",))
    for statement, taken in found.items():
        milliseconds = median(taken) * 1000
        targets = [Target(milliseconds, "<", 200, "ms")]
        table.add(statement, milliseconds, targets=targets if statement == "import agentfield" else ())
    return table


async def up(here: Surroundings) -> Table:
    """From the command ``agentfield up`` on an empty home to the first acknowledged write."""
    commanded, connected = [], []
    for _ in range(here.scale(7, 2)):
        async with _home() as environment:
            begun = time.perf_counter()
            await _output(*TOOL, "up", environment=environment)
            await _output(*TOOL, "set", "greeting", '"hello"', environment=environment)
            commanded.append(time.perf_counter() - begun)
        async with _home() as environment:
            begun = time.perf_counter()
            url = (await _output(*TOOL, "up", environment=environment)).split()[0]
            async with agentfield.connect(url) as memory:
                await memory.set("greeting", "hello")
            connected.append(time.perf_counter() - begun)
    table = Table("agentfield up, to the first acknowledged write, streams created", ("s",))
    for name, taken in (
        ("up, and a set from a running program", connected),
        ("up, and then `agentfield set`", commanded),
    ):
        seconds = median(taken)
        table.add(name, seconds, targets=[Target(seconds, "<", 1, "s")])
    return table


async def idle(here: Surroundings) -> Table:
    """What an agent with one reasoner and one handler costs while nothing happens, as ``agentfield run`` serves it."""
    seconds = here.scale(30, 8)
    async with served(here, IDLE_AGENT) as agent:
        await asyncio.sleep(_SETTLING)
        before, begun = agent.cpu_times(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, lasted = agent.cpu_times(), time.perf_counter() - begun
        resident = megabytes(agent)
    busy = (after.user + after.system - before.user - before.system) / lasted * 100
    table = Table(f"an idle agent, over {seconds} s", ("",))
    table.add("resident, MB", resident, targets=[Target(resident, "<", 80, "MB")])
    table.add("of one core, %", busy, targets=[Target(busy, "<", 1, "%")])
    return table


@asynccontextmanager
async def _home() -> AsyncIterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="agentfield-bench-up-") as home:
        try:
            yield {"AGENTFIELD_HOME": home, "AGENTFIELD_NAMESPACE": NAMESPACE}
        finally:
            await stop_server(home)


async def _output(*command: str, environment: Mapping[str, str] | None = None) -> str:
    surroundings = {
        name: value for name, value in os.environ.items() if name not in ("AGENTFIELD_NATS_URL", "NATS_URL")
    }
    process = await asyncio.create_subprocess_exec(
        *command, env={**surroundings, **(environment or {})}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    return output.decode()
