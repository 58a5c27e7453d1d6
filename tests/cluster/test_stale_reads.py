"""Strong reads on a cluster: never behind an acknowledged write, whichever node is asked, also when replicas change."""

import asyncio
import json

import nats
import pytest

from agentfield import connect
from agentfield.memory.reads import Consistency
from tests.support import Cluster
from tests.support.asking import reading_process


async def _replicas(url: str, stream: str) -> int:
    client = await nats.connect(url)
    try:
        return int((await client.jetstream().stream_info(stream)).config.num_replicas or 1)
    finally:
        await client.close()


async def test_what_is_set_through_one_node_is_read_through_every_other_without_a_stale_read(
    cluster: Cluster, namespace: str
) -> None:
    stale = []
    async with (
        connect(cluster.urls[0], namespace=namespace, timeout=30) as memory,
        reading_process(cluster.urls[0], namespace) as one,
        reading_process(cluster.urls[1], namespace) as two,
        reading_process(cluster.urls[2], namespace) as three,
    ):
        assert await _replicas(cluster.urls[0], f"{namespace.upper()}_MEMORY") == 3
        for number in range(1000):
            await memory.set("count", number)
            for found in await asyncio.gather(one("count"), two("count"), three("count")):
                if found != number:
                    stale.append((number, found))
    assert stale == []


@pytest.mark.parametrize("mode", ["strong", "session", "cached", "linearizable"])
async def test_every_consistency_answers_rightly_on_three_replicas(
    cluster: Cluster, namespace: str, mode: Consistency
) -> None:
    async with connect(cluster.urls[0], namespace=namespace, timeout=30) as memory:
        assert await memory.get("k", "absent", consistency=mode) == "absent"
        for number in range(100):
            await memory.set("k", number)
            assert await memory.get("k", consistency=mode) == number
            assert await memory.get_many(["k", "nothing"], consistency=mode) == {"k": number}
        await memory.delete("k")
        assert not await memory.exists("k", consistency=mode)


async def test_many_keys_at_once_are_never_behind(cluster: Cluster, namespace: str) -> None:
    async with (
        connect(cluster.urls[0], namespace=namespace, timeout=30) as writer,
        connect(cluster.urls[1], namespace=namespace, timeout=30) as reader,
    ):
        keys = [f"k_{index}" for index in range(30)]
        for number in range(60):
            await writer.set_many(dict.fromkeys(keys, number))
            assert await reader.get_many(keys) == dict.fromkeys(keys, number)
            assert {entry.value async for entry in reader.items("k_*")} == {number}


async def test_a_stream_that_is_scaled_down_and_up_again_under_a_running_agent_stays_strong(
    cluster: Cluster, namespace: str
) -> None:
    stream = f"{namespace.upper()}_MEMORY"
    client = await nats.connect(cluster.urls[0])

    async def scale(replicas: int) -> None:
        info = json.loads((await client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=5)).data)
        body = json.dumps({**info["config"], "num_replicas": replicas}).encode()
        answer = json.loads((await client.request(f"$JS.API.STREAM.UPDATE.{stream}", body, timeout=10)).data)
        assert "error" not in answer, answer

    try:
        async with connect(cluster.urls[0], namespace=namespace, timeout=30) as writer:
            await writer.set("count", -1)
            await scale(1)
            async with connect(cluster.urls[1], namespace=namespace, timeout=30) as reader:
                await scale(1)  # whoever connects lets replicas follow the cluster: take them away again
                # at once, while the servers that lose their replica may not have heard of it
                stale = []
                for number in range(600):
                    if number == 100:
                        await scale(3)
                    await writer.set("count", number)
                    if (found := await reader.get("count")) != number:
                        stale.append((number, found))
                assert stale == []
                assert await _replicas(cluster.urls[0], stream) == 3
    finally:
        await client.close()


async def test_writes_and_reads_recover_by_themselves_when_the_leader_is_killed(
    cluster: Cluster, namespace: str
) -> None:
    async with connect(",".join(cluster.urls), namespace=namespace, timeout=30) as memory:
        await memory.set("k", "before")
        leader = await cluster.stream_leader(f"{namespace.upper()}_MEMORY")
        await leader.kill()
        await memory.set("k", "after")
        assert await memory.get("k") == "after"
        assert [event.data async for event in memory.history("k")] == ["before", "after"]
