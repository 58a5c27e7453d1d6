"""The past on three replicas: the same answer whichever replica gives it, also one that has only just come back."""

import asyncio
from datetime import UTC, datetime, timedelta

from agentfield import connect
from tests.support import Cluster


async def test_what_a_replica_has_missed_it_does_not_call_absent(cluster: Cluster, namespace: str) -> None:
    keys = [f"k_{number}" for number in range(30)]
    async with connect(cluster.urls[0], namespace=namespace, timeout=30) as memory:
        first = await memory.set_many(dict.fromkeys(keys, 1))
        leader = await cluster.stream_leader(f"{namespace.upper()}_MEMORY")
        lagging = next(node for node in cluster.others(leader) if node.url != cluster.urls[0])
        await lagging.kill()
        second = await memory.set_many(dict.fromkeys(keys, 2))
        await memory.set("late", 1)
        third = await memory.set_many(dict.fromkeys(keys, 3))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lagging.start())
            for _ in range(20):
                for revision, value in ((first, 1), (second, 2), (third, 3)):
                    past = memory.as_of(revision)
                    assert await past.get_many(keys) == dict.fromkeys(keys, value)
                    assert await past.exists("late") == (revision == third)
                    assert [entry.value async for entry in past.items("k_*")] == [value] * len(keys)
        assert len((await memory.diff("k_*", first, second)).changed) == len(keys)
        assert await memory.as_of(datetime.now(UTC)).get("k_1") == 3
        assert await memory.as_of(timedelta(0)).get("late") == 1
        assert len((await memory.revert("k_*", first, scope="global")).changes.changed) == len(keys)
        assert await memory.get_many(keys) == dict.fromkeys(keys, 1)
