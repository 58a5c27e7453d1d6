"""Large values on three servers: whole at once on every node, and through the loss of the leader."""

import asyncio

from agentfield import connect
from tests.support import Cluster, eventually
from tests.support.objects import fabric_of, messages

VALUE = "".join(f"{number:08x}" for number in range(60_000))


async def test_every_node_reads_a_large_value_the_moment_it_is_written(cluster: Cluster, namespace: str) -> None:
    one, two, three = (connect(node.url, namespace=namespace) for node in cluster.nodes)
    async with one as writer, two as second, three as third:
        for turn in range(30):
            await writer.set("report", [VALUE, turn])
            for found in await asyncio.gather(*(memory.get("report") for memory in (second, third, writer))):
                assert found == [VALUE, turn]


async def test_a_large_write_survives_the_loss_of_the_leader(cluster: Cluster, namespace: str) -> None:
    async with connect(cluster.nodes[0].url, namespace=namespace, timeout=40) as memory:
        fabric = await fabric_of(memory)
        leader = await cluster.stream_leader(fabric.topology.objects.name)
        value = VALUE * 60
        writing = asyncio.create_task(memory.set("report", value))

        async def under_way() -> bool:
            return await messages(fabric) > 20

        await eventually(under_way, within=20)
        await leader.kill()
        await writing
        assert await memory.get("report") == value
