"""What the doctor finds on a cluster: replicas that are away or short, each asked for itself."""

from dataclasses import replace

from agentfield import connect
from agentfield.cli.connecting import Place
from agentfield.cli.diagnosing import findings
from agentfield.cli.examining import Facts, examine
from agentfield.fabric.replicas import messages_by_replica
from tests.support import Cluster, eventually


async def examined(cluster: Cluster, namespace: str, *, by: int = 0) -> Facts:
    """What one node tells the doctor."""
    return await examine(Place(cluster.urls[by], namespace), connect_patience=10, patience=20)


async def test_a_whole_cluster_is_healthy_and_each_replica_is_asked(cluster: Cluster, namespace: str) -> None:
    async with connect(cluster.urls[0], namespace=namespace, timeout=30) as memory:
        await memory.set_many({f"key_{number}": number for number in range(100)})
        fabric = await memory._fabric()
        names = {node.name for node in cluster.nodes}
        assert await messages_by_replica(fabric.connection, fabric.log.stream, names) == dict.fromkeys(names, 100)
    facts = await examined(cluster, namespace)
    assert findings(facts) == []
    assert facts.replicas == dict.fromkeys(names, 0)
    (finding,) = findings(replace(facts, replicas={**facts.replicas, "node-2": 3}))
    assert (finding.check, finding.what) == ("log", "the log's replica on node-2 is short of 3 events")


async def test_a_server_that_is_away_is_named(cluster: Cluster, namespace: str) -> None:
    async with connect(cluster.urls[0], namespace=namespace, timeout=30) as memory:
        await memory.set("key", 1)
    stream = f"{namespace.upper()}_MEMORY"
    leader = await cluster.stream_leader(stream)
    away = cluster.others(leader)[0]
    await away.stop()
    asked = cluster.nodes.index(leader)

    async def named() -> bool:
        found = [finding.what for finding in findings(await examined(cluster, namespace, by=asked))]
        return f"stream {stream}: its replica on {away.name} is offline" in found

    await eventually(named, within=30)
