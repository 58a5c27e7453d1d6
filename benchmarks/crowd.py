"""A crowd of agents on one server: what they are sent, what they cost while idle, and what writers pay for them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
from nats.aio.client import Client as RawClient

from agentfield import Agent
from benchmarks.measuring import Burst, Rates, Span, rates
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, VALUE, Surroundings

_HANDLERS = 5
_PROCESSES = 4
_WRITERS = 8
_QUIET = 3.0
"""Seconds until what starting took has died down."""


async def crowd(here: Surroundings) -> Table:
    """Agents with five handlers each, whose patterns' stars stand for whole segments; 1 % of the writes match one.

    They are in processes apart from the writers'. What writers pay is against the same before they came and after they
    have gone: without the consumers, that is, too.
    """
    agents, amount, rounds = here.scale(100, 20), here.scale(4000, 2000), here.scale(6, 3)
    each = agents // _PROCESSES
    async with here.raw() as client, here.agent("writer") as writer:

        async def burst() -> Span:
            begun = time.perf_counter()
            await asyncio.gather(*(_write(writer, amount // _WRITERS, task, agents) for task in range(_WRITERS)))
            return Span(amount, time.perf_counter() - begun)

        alone = [await _measured(here, burst, rounds, amount)]
        async with AsyncExitStack() as stack:
            listeners = [
                await stack.enter_async_context(_listeners(here, each * number, each)) for number in range(_PROCESSES)
            ]
            await _wake(writer, agents)
            already = await _all_heard(listeners, agents * _HANDLERS)
            await asyncio.sleep(_QUIET)
            idle, serving = await _idle(here, listeners)
            busy = sum(_cpu(psutil.Process(process.pid)) for process in listeners)
            among = await _measured(here, burst, rounds, amount)
            busy = sum(_cpu(psutil.Process(process.pid)) for process in listeners) - busy
            matching = (rounds + 1) * _WRITERS * -(-(amount // _WRITERS) // 100)
            heard = await _all_heard(listeners, already + matching) - already
            sent = await _sent(client)
        await _delete_consumers(client)
        alone.append(await _measured(here, burst, rounds, amount))
    table = Table(f"{agents} agents with {_HANDLERS} handlers each, in {_PROCESSES} processes", ("",))
    table.add("events of the writes that match", float(matching))
    table.add("events handled", float(heard), targets=[Target(heard, "≥", matching, "")])
    # Each handler had one event before, so that it is active; a first event is sent twice, once to find out by whom.
    most = matching + 2 * agents * _HANDLERS
    sent_at_most = Target(sent, "≤", most, "(and two a handler)")
    table.add("events that the server sent", float(sent), targets=[sent_at_most])
    idle_share = idle / agents * 100
    table.add("of one core while idle, % an agent", idle_share, targets=[Target(idle_share, "<", 1, "%")])
    table.add("of one core while they are idle, % the server", serving * 100)
    baseline = Rates([rate for one in alone for rate in one.rates.rounds])
    table.add("writes a second, nobody listening", baseline.typical, ratio=1.0)
    ratio = among.rates.typical / baseline.typical
    targets = [Target(ratio, "≥", 0.9, "× alone")]
    table.add("writes a second, all listening", among.rates.typical, ratio=ratio, targets=targets)
    table.add("µs of the server a write, nobody listening", sum(one.server for one in alone) / len(alone))
    table.add("µs of the server a write, all listening", among.server)
    table.add("µs of the agents a write", busy / ((rounds + 1) * amount) * 1e6)
    table.remarks.append(f"The server, {_WRITERS} writers and all agents share this machine's cores.")
    return table


class _Measured:
    """What writing took."""

    def __init__(self, rates: Rates, server: float) -> None:
        self.rates = rates
        self.server = server
        """Microseconds of the server's processor a write."""


async def _measured(here: Surroundings, burst: Burst, rounds: int, amount: int) -> _Measured:
    server = psutil.Process(here.server.pid)
    before = _cpu(server)
    found = await rates({"writes": burst}, rounds=rounds)
    return _Measured(found["writes"], (_cpu(server) - before) / ((rounds + 1) * amount) * 1e6)


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


@asynccontextmanager
async def _listeners(here: Surroundings, first: int, count: int) -> AsyncIterator[Process]:
    """A process with so many agents, all of them listening."""
    program = [sys.executable, "-m", "benchmarks.crowd_agents", here.url, NAMESPACE]
    numbers = [str(number) for number in (first, first + count - 1, _HANDLERS)]
    process = await asyncio.create_subprocess_exec(*program, *numbers, stdin=PIPE, stdout=PIPE)
    try:
        await _reported(process)
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def _reported(process: Process) -> int:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process of listening agents has ended")
    return int(json.loads(line)["heard"])


async def _heard(listeners: Sequence[Process]) -> int:
    """How many events all have handled so far."""
    for process in listeners:
        assert process.stdin is not None
        process.stdin.write(b"\n")
    return sum([await _reported(process) for process in listeners])


async def _all_heard(listeners: Sequence[Process], expected: int) -> int:
    """The same once it is what it should be, or will not be any more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        heard = await _heard(listeners)
        if heard >= expected or time.monotonic() >= deadline:
            return heard
        await asyncio.sleep(0.1)


async def _idle(here: Surroundings, listeners: Sequence[Process]) -> tuple[float, float]:
    """What share of a core the agents, and the server, take while nothing is written."""
    server, agents = psutil.Process(here.server.pid), [psutil.Process(process.pid) for process in listeners]
    busy, serving, begun = sum(map(_cpu, agents)), _cpu(server), time.perf_counter()
    await asyncio.sleep(here.scale(20, 6))
    took = time.perf_counter() - begun
    return (sum(map(_cpu, agents)) - busy) / took, (_cpu(server) - serving) / took


async def _wake(writer: Agent, agents: int) -> None:
    """Let every handler have an event, as it would sooner or later: only then it is active, and costs what it costs."""
    for number in range(agents):
        await writer.memory.set_many(
            {f"job{number}x{each}_first_status": VALUE for each in range(_HANDLERS)}, scope="global"
        )


async def _write(writer: Agent, amount: int, which: int, agents: int) -> None:
    """One write in a hundred is for a handler of one of the agents."""
    for number in range(amount):
        if number % 100:
            key = f"noise_{which}_{number}_status"
        else:
            key = f"job{(which * 13 + number // 100) % agents}x{number // 100 % _HANDLERS}_{which}_status"
        await writer.memory.set(key, VALUE, scope="global")


async def _sent(client: RawClient) -> int:
    """How many events the server has sent to all handlers' consumers so far, by its own count."""
    stream, sent = client.jetstream(timeout=PATIENCE), 0
    offset = 0
    while page := await stream.consumers_info(LOG, offset=offset):
        sent += sum(info.delivered.consumer_seq for info in page if info.delivered is not None)
        offset += len(page)
    return sent


async def _delete_consumers(client: RawClient) -> None:
    """Have nobody listen any more, not even in the server's memory."""
    stream = client.jetstream(timeout=PATIENCE)
    while page := [info.name for info in await stream.consumers_info(LOG) if "listener-" in info.name]:
        for name in page:
            await stream.delete_consumer(LOG, name)
