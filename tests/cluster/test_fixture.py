"""The cluster that other tests stand on is one: it replicates, elects, survives, and heals."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import nats
from nats.aio.client import Client
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError

from tests.support import Cluster, Node, eventually


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[Client]:
    client = await nats.connect(node.url, allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def replicated_stream(cluster: Cluster, name: str) -> None:
    async with connected(cluster.nodes[0]) as client:
        info = await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], num_replicas=3))
    assert info.cluster is not None
    assert len(info.cluster.replicas or []) == 2


async def stored_through(node: Node, stream: str) -> int:
    """Store one message; a node that has just come back may not know the leader yet, and says so."""
    headers = {"Nats-Msg-Id": secrets.token_hex(8)}
    async with connected(node) as client:

        async def stored() -> int:
            with suppress(NoStreamResponseError):
                return (await client.jetstream().publish(f"{stream}.event", b"x", timeout=10, headers=headers)).seq
            return 0

        return int(await eventually(stored, within=20))


async def check_failover(cluster: Cluster, stream: str) -> None:
    await replicated_stream(cluster, stream)
    assert [await stored_through(node, stream) for node in cluster.nodes] == [1, 2, 3]

    leader = await cluster.stream_leader(stream)
    await leader.kill()
    successor = await cluster.stream_leader(stream)
    assert successor is not leader
    assert await stored_through(successor, stream) == 4

    await leader.start()
    await cluster.heal()
    assert await stored_through(leader, stream) == 5


async def check_pause(cluster: Cluster, stream: str) -> None:
    await replicated_stream(cluster, stream)
    leader = await cluster.stream_leader(stream)
    await leader.pause()
    successor = await cluster.stream_leader(stream)
    assert successor is not leader
    assert await stored_through(successor, stream) == 1

    await leader.resume()
    await cluster.heal()
    assert await stored_through(leader, stream) == 2


async def test_three_processes_keep_a_stream_through_the_crash_of_its_leader(cluster: Cluster, namespace: str) -> None:
    await check_failover(cluster, namespace)


async def test_three_processes_keep_a_stream_while_its_leader_is_paused(cluster: Cluster, namespace: str) -> None:
    await check_pause(cluster, namespace)


async def test_every_node_of_the_cluster_names_the_same_meta_leader(cluster: Cluster) -> None:
    leader = await cluster.meta_leader()
    assert leader in cluster.nodes
    assert cluster.others(leader) == [node for node in cluster.nodes if node.name != leader.name]


async def test_three_containers_keep_a_stream_through_the_crash_of_its_leader(
    docker_cluster: Cluster, namespace: str
) -> None:
    await check_failover(docker_cluster, namespace)


async def test_three_containers_keep_a_stream_while_its_leader_is_paused(
    docker_cluster: Cluster, namespace: str
) -> None:
    await check_pause(docker_cluster, namespace)
