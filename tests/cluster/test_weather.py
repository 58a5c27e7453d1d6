"""A cluster that loses its leader under load: nothing acknowledged is lost, nothing is stored or handled twice."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import pytest

from agentfield import Agent, Event, connect
from agentfield.errors import UnavailableError
from tests.support import Cluster, eventually
from tests.support.load import Load

pytestmark = pytest.mark.timeout(120)

_FAILOVER = 40.0


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_leader_that_is_lost_under_load_costs_time_and_nothing_else(
    cluster: Cluster, namespace: str, how: str
) -> None:
    load = Load()
    urls = ",".join(cluster.urls)
    agent = Agent("follower", nats_url=urls, namespace=namespace)
    handled: dict[str, list[tuple[int, int | None]]] = {}

    @agent.memory.on_change("key_*")
    async def follow(event: Event) -> None:
        handled.setdefault(event.key, []).append((event.data, event.previous_data))

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(agent)
        memories = [
            await stack.enter_async_context(connect(",".join([url, *cluster.urls]), namespace=namespace, timeout=30))
            for url in cluster.urls
        ]
        async with asyncio.TaskGroup() as writers:
            for number in range(6):
                writers.create_task(load.write(memories[number % 3], f"key_{number}"))
            await eventually(partial(load.passed, 200), within=_FAILOVER)
            leader = await cluster.stream_leader(f"{namespace.upper()}_MEMORY")
            await (leader.kill() if how == "killed" else leader.pause())
            await cluster.stream_leader(f"{namespace.upper()}_MEMORY", within=_FAILOVER)
            await eventually(partial(load.passed, load.count + 200), within=_FAILOVER)
            await (leader.start() if how == "killed" else leader.resume())
            await eventually(partial(load.passed, load.count + 200), within=_FAILOVER)
            load.stop.set()
        assert [error for error in load.refused if not isinstance(error, UnavailableError)] == []
        await load.judge(memories[0])
        for key in load.acknowledged:
            stored = [event.data async for event in memories[0].history(key)]
            await eventually(lambda key=key, stored=stored: handled[key][-1][0] == stored[-1], within=_FAILOVER)  # type: ignore[misc]
            firsts = list(dict.fromkeys(data for data, _ in handled[key]))
            assert firsts == stored, f"{key} was not handled in order, or not whole"
            before = dict(zip(stored, [None, *stored], strict=False))
            assert all(before[data] == previous for data, previous in handled[key])
