"""Seals on a cluster: one chain through the loss of a server, verified alike through every node."""

import asyncio

from agentfield import connect
from agentfield.audit.checking import check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Seal
from agentfield.fabric.fabric import Fabric
from projections import Source
from projections.seals import Sealer, Seals
from tests.support import Cluster, eventually

SIGNER = Signer.generate()


async def test_the_chain_goes_on_when_the_leader_of_the_log_is_lost(cluster: Cluster, namespace: str) -> None:
    made: list[int] = []
    revision = 0
    fabrics = [await Fabric.open(url, namespace=namespace, name="test", timeout=30) for url in cluster.urls]

    def note(seal: Seal) -> None:
        made.append(seal.last)

    seals = Seals(SIGNER, every=10, within=0.3, made=note)
    sealers = [asyncio.create_task(Sealer(Source(fabric), seals).run()) for fabric in fabrics]
    try:
        async with connect(",".join(cluster.urls), namespace=namespace, timeout=30) as memory:
            for number in range(60):
                revision = await memory.set("key", number)
                if number == 30:
                    leader = await cluster.stream_leader(fabrics[0].log.stream)
                    await leader.kill()
            await eventually(lambda: made and made[-1] >= revision, within=30, what="everything is sealed")
            await cluster.heal()
        for fabric in fabrics:
            verdict = (await check_live(fabric, trusted=[SIGNER.public])).verdict
            assert (verdict.intact, verdict.last, verdict.events) == (True, made[-1], made[-1])
        assert sorted(set(made)) == sorted(made)
    finally:
        for task in sealers:
            task.cancel()
        await asyncio.gather(*sealers, return_exceptions=True)
        for fabric in fabrics:
            await fabric.aclose()
