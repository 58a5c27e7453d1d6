"""Locks on three replicas: a renewal not yet decided refuses nobody, and a failover costs no holder its lock."""

import asyncio

from agentfield import connect
from agentfield.fabric.appending import Conflict
from tests.support import Cluster


async def test_no_fenced_write_is_refused_while_leases_are_renewed_and_the_leader_changes(
    cluster: Cluster, namespace: str
) -> None:
    async with (
        connect(cluster.urls[0], namespace=namespace, timeout=30) as memory,
        memory.lock("name", ttl=20) as lock,
    ):
        loop, counts = asyncio.get_running_loop(), [0] * 6
        ends = loop.time() + 4.0

        async def write(number: int) -> None:
            revision = 0
            while loop.time() < ends:
                expected = revision if counts[number] % 2 else None
                revision = await memory.set(f"key_{number}", counts[number], fence=lock, if_revision=expected)
                counts[number] += 1

        async def renew() -> None:
            """Far more often than the lock does it by itself, and in the same way."""
            while loop.time() < ends:
                try:
                    lock._revision = max(lock._revision, await lock._write(lock._revision))
                except Conflict:  # a write that is fenced by it is on its way
                    assert await lock.still_ours()
                await asyncio.sleep(0.02)

        async def unsettle() -> None:
            await asyncio.sleep(1.0)
            leader = await cluster.stream_leader(f"{namespace.upper()}_MEMORY")
            await leader.stop()
            await leader.start()

        await asyncio.gather(renew(), unsettle(), *(write(number) for number in range(len(counts))))
        assert min(counts) > 5
        assert await memory.get_many([f"key_{number}" for number in range(len(counts))]) == {
            f"key_{number}": count - 1 for number, count in enumerate(counts)
        }
