"""The whole of memory on three servers in containers, one of which dies."""

import asyncio

import pytest

from agentfield import Agent, Event, connect
from tests.support import Cluster, eventually


# Docker's proxy accepts connections for a server that is gone, and closes them. nats-py leaves the socket of such an
# attempt to the garbage collector, which closes it and warns.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*StreamWriter:pytest.PytestUnraisableExceptionWarning")
async def test_agents_share_state_through_containers_and_outlive_the_leader(
    docker_cluster: Cluster, namespace: str
) -> None:
    urls = ",".join(docker_cluster.urls)
    agent = Agent("watcher", nats_url=urls, namespace=namespace)
    heard: list[tuple[int, int | None]] = []

    @agent.memory.on_change("count")
    async def react(event: Event) -> None:
        heard.append((event.data, event.previous_data))

    async with agent, connect(urls, namespace=namespace, timeout=30) as memory:
        for number in range(50):
            await memory.set("count", number)
            assert await memory.get("count") == number
        leader = await docker_cluster.stream_leader(f"{namespace.upper()}_MEMORY")
        await leader.kill()
        for number in range(50, 100):
            await memory.set("count", number)
            assert await memory.get("count") == number
        await eventually(lambda: bool(heard) and heard[-1][0] == 99, within=30)
        async with memory.transaction() as tx:
            tx.set("count", await tx.get("count") + 1)
        assert await asyncio.wait_for(memory.get("count", consistency="linearizable"), 30) == 100
    numbers = [data for data, _ in heard]
    assert sorted(set(numbers) - {100}) == list(range(100))
    assert all(previous == (data - 1 if data else None) for data, previous in heard)
