"""Seals on a cluster: one chain through the loss of a server, verified alike through every node."""

import asyncio
from contextlib import aclosing

from agentfield import connect
from agentfield.audit.checking import check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.sealing import Sealer
from agentfield.fabric.fabric import Fabric
from tests.support import Cluster, eventually

SIGNER = Signer.generate()


async def test_the_chain_goes_on_when_the_leader_of_the_log_is_lost(cluster: Cluster, namespace: str) -> None:
    made: list[int] = []
    revision = 0
    fabrics = [await Fabric.open(url, namespace=namespace, name="test", timeout=30) for url in cluster.urls]

    async def follow(fabric: Fabric) -> None:
        async with aclosing(Sealer(fabric, SIGNER, every=10, within=0.3).follow()) as seals:
            async for seal in seals:
                made.append(seal.last)

    sealers = [asyncio.create_task(follow(fabric)) for fabric in fabrics]
    try:
        async with connect(",".join(cluster.urls), namespace=namespace, timeout=30) as memory:
            for number in range(60):
                revision = await memory.set("key", number)
                if number == 30:
                    leader = await cluster.stream_leader(fabrics[0].log.stream)
                    await leader.kill()
            await eventually(lambda: revision in made, within=30, what="everything is sealed")
            await cluster.heal()
        for fabric in fabrics:
            verdict = (await check_live(fabric, trusted=[SIGNER.public])).verdict
            assert (verdict.intact, verdict.last, verdict.events) == (True, revision, revision)
        assert sorted(set(made)) == sorted(made)
    finally:
        for task in sealers:
            task.cancel()
        await asyncio.gather(*sealers, return_exceptions=True)
        for fabric in fabrics:
            await fabric.aclose()
