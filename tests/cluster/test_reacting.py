"""Handlers and watches in a cluster that loses its leader: each change once at its place, whatever they began with."""

import asyncio
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any

import pytest

from agentfield import Agent, Event, Memory, connect
from tests.support import Cluster, eventually
from tests.support.load import Load

_FAILOVER = 40.0
KEYS = 6


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_a_lost_leader_costs_nobody_a_change_and_live_ones_not_even_a_repeat(
    cluster: Cluster, namespace: str, how: str
) -> None:
    load, urls = Load(), ",".join(cluster.urls)
    heard: dict[str, dict[str, list[tuple[int, Any]]]] = {"agent": {}, "instance": {}, "watch": {}}
    agent = Agent("follower", nats_url=urls, namespace=namespace)

    def hear(by: str, event: Event) -> None:
        heard[by].setdefault(event.key, []).append((event.data, event.previous_data))

    agent.memory.on_change("key_*", name="one", start="current")(partial(hear_async, hear, "agent"))
    agent.memory.on_change("key_*", name="every", start="current", delivery="instance")(
        partial(hear_async, hear, "instance")
    )

    async def watch(memory: Memory) -> None:
        async with aclosing(memory.watch("key_*", start="current")) as items:
            async for item in items:
                if isinstance(item, Event):
                    hear("watch", item)

    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(connect(urls, namespace=namespace, timeout=30))
        writers = [asyncio.create_task(load.write(memory, f"key_{number}")) for number in range(KEYS)]
        await eventually(partial(load.passed, 100), within=_FAILOVER)
        await stack.enter_async_context(agent)
        watching = asyncio.create_task(watch(memory))
        await eventually(partial(load.passed, load.count + 200), within=_FAILOVER)
        leader = await cluster.stream_leader(f"{namespace.upper()}_MEMORY")
        await (leader.kill() if how == "killed" else leader.stop())
        await eventually(partial(load.passed, load.count + 200), within=_FAILOVER)
        await leader.start()
        await eventually(partial(load.passed, load.count + 100), within=_FAILOVER)
        load.stop.set()
        await asyncio.gather(*writers)
        last = {f"key_{number}": await memory.get(f"key_{number}") for number in range(KEYS)}
        await eventually(lambda: all(has_come_to(each, last) for each in heard.values()), within=_FAILOVER)
        stored = {key: [event.data async for event in memory.history(key)] for key in last}
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    for by, keys in heard.items():
        for key, events in keys.items():
            numbers = [number for number, _ in events]
            firsts = list(dict.fromkeys(numbers))
            assert firsts == stored[key][-len(firsts) :], f"{by}: {key} has a gap, or is out of order"
            assert by == "agent" or numbers == firsts, f"{by}: {key} was repeated"
            before = dict(zip(stored[key], [None, *stored[key]], strict=False))
            assert all(before[number] == previous for number, previous in events)


async def hear_async(hear: Any, by: str, event: Event) -> None:
    hear(by, event)


def has_come_to(heard: dict[str, list[tuple[int, Any]]], last: dict[str, Any]) -> bool:
    return all(heard.get(key, [(None, None)])[-1][0] == number for key, number in last.items())
