"""Trimming on a cluster: every replica lets go of the same, and loses nothing else."""

import asyncio
from pathlib import Path

from agentfield import connect
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.replicas import messages_by_replica
from tests.support import Cluster, eventually
from tests.support.archiving import archive, archived, live, trim


async def test_a_log_is_trimmed_alike_on_every_replica_while_it_is_written(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    fabric = await Fabric.open(cluster.urls[0], namespace=namespace, name="test", timeout=30)
    over = asyncio.Event()
    written: list[int] = []
    try:
        async with connect(",".join(cluster.urls), namespace=namespace, timeout=30) as memory:
            for number in range(20):
                await memory.set_many({f"order_{key}": number for key in range(30)})

            async def writes() -> None:
                while not over.is_set():
                    written.append(await memory.set(f"order_{len(written) % 7}", len(written)))

            task = asyncio.create_task(writes())
            await archive(fabric, tmp_path)
            removed = await trim(fabric, tmp_path)
            seen = len(written)
            await eventually(lambda: len(written) > seen, within=20)
            over.set()
            await task
            assert removed > 300
            left = await live(fabric)
            complete = fabric.log.held.complete
            assert {each for each in written if each >= complete} <= {each.sequence for each in left}
            kept = await archived(tmp_path / "archive")
            assert {each for each in written if each < complete} <= {each.sequence for each in kept}
            servers = {node.name for node in cluster.nodes}

            async def alike() -> bool:
                counts = await messages_by_replica(fabric.connection, fabric.log.stream, servers)
                return set(counts.values()) == {len(left)}

            await eventually(alike, within=20, what="every replica holds the same")
        async with connect(cluster.urls[1], namespace=namespace, archive=tmp_path / "archive", timeout=30) as memory:
            revisions = [event.revision async for event in memory.history("order_*", until=complete - 1)]
            assert revisions == [each.sequence for each in kept if ".order." in each.subject]
    finally:
        over.set()
        await fabric.aclose()
