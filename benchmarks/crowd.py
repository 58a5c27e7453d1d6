"""A crowd of agents on one server: what they are sent, what they cost while idle, and what writers pay for them."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import psutil
from nats.aio.client import Client as RawClient

from agentfield import Agent, Event
from agentfield.testing import settled
from benchmarks.measuring import Span, rates
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, VALUE, Surroundings

_HANDLERS = 5
_WRITERS = 8
_QUIET = 3.0
"""Seconds until what starting took has died down."""


async def crowd(here: Surroundings) -> Table:
    """Agents with five handlers each, whose patterns' stars stand for whole segments; 1 % of the writes match one."""
    agents, amount = here.scale(100, 20), here.scale(4000, 1000)
    heard = [0] * agents
    async with here.raw() as client, here.agent("writer") as writer, AsyncExitStack() as stack:

        async def burst() -> Span:
            begun = time.perf_counter()
            await asyncio.gather(*(_write(writer, amount // _WRITERS, each, agents) for each in range(_WRITERS)))
            return Span(amount, time.perf_counter() - begun)

        before = await rates({"alone": burst}, rounds=here.scale(5, 3))
        crowd = [_agent(here, number, heard) for number in range(agents)]
        for agent in crowd:
            await stack.enter_async_context(agent)
        await settled(*crowd)
        await asyncio.sleep(_QUIET)
        process = psutil.Process()
        busy, begun = sum(process.cpu_times()[:2]), time.perf_counter()
        await asyncio.sleep(here.scale(20, 6))
        idle = (sum(process.cpu_times()[:2]) - busy) / (time.perf_counter() - begun) / agents * 100
        heard[:] = [0] * agents
        after = await rates({"crowd": burst}, rounds=here.scale(5, 3))
        await settled(*crowd)
        sent = await _sent(client)
    table = Table(f"{agents} agents with {_HANDLERS} handlers each, in one process", ("",))
    table.add("events handled, of all", float(sum(heard)))
    # A handler's first event is sent twice: once to find out which instance is the active one.
    most = sum(heard) + agents * _HANDLERS
    table.add("events that the server sent", float(sent), targets=[Target(sent, "≤", most, "(and one a handler)")])
    table.add("of one core while idle, % an agent", idle, targets=[Target(idle, "<", 1, "%")])
    table.add("writes a second, nobody listening", before["alone"].typical, ratio=1.0)
    ratio = after["crowd"].typical / before["alone"].typical
    targets = [Target(ratio, "≥", 0.9, "× alone")]
    table.add("writes a second, all listening", after["crowd"].typical, ratio=ratio, targets=targets)
    table.remarks.append("All agents share the writers' process and cores: what they handle is taken from the writers.")
    return table


def _agent(here: Surroundings, number: int, heard: list[int]) -> Agent:
    agent = Agent(f"listener-{number}", nats_url=here.url, namespace=NAMESPACE)

    async def react(event: Event) -> None:
        heard[number] += 1

    for each in range(_HANDLERS):
        agent.memory.on_change(f"job{number}x{each}_*_status", scope="global", name=f"on-{each}")(react)
    return agent


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
