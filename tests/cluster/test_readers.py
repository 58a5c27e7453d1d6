"""What is read through consumers on a cluster is never behind an acknowledged write, though replicas are."""

import asyncio

from agentfield import CaughtUp, Memory, connect
from tests.support import Cluster


async def _last(memory: Memory, key: str) -> object:
    return [event.data async for event in memory.history(key)][-1:]


async def test_history_through_every_node_ends_with_the_latest_write(cluster: Cluster, namespace: str) -> None:
    async with (
        connect(cluster.urls[0], namespace=namespace, timeout=30) as one,
        connect(cluster.urls[1], namespace=namespace, timeout=30) as two,
        connect(cluster.urls[2], namespace=namespace, timeout=30) as three,
    ):
        for number in range(100):
            await one.set("count", number)
            assert await asyncio.gather(*(_last(memory, "count") for memory in (one, two, three))) == [[number]] * 3


async def test_more_keys_than_one_answer_holds_come_once_each_and_in_their_latest_form(
    cluster: Cluster, namespace: str
) -> None:
    async with (
        connect(cluster.urls[0], namespace=namespace, timeout=30) as writer,
        connect(cluster.urls[1], namespace=namespace, timeout=30) as reader,
    ):
        for begin in range(0, 1500, 500):
            await writer.set_many({f"k_{number}": 0 for number in range(begin, begin + 500)})
        for round in range(1, 9):
            await writer.set_many({f"k_{number}": round for number in range(round, 1500, 50)})
            found = [(entry.key, entry.value) async for entry in reader.items("k_*")]
            assert len(found) == 1500
            values = dict(found)
            assert len(values) == 1500
            assert {key for key, value in values.items() if value == round} == {
                f"k_{number}" for number in range(round, 1500, 50)
            }


async def test_a_watch_has_seen_everything_from_before_when_it_says_that_it_has_caught_up(
    cluster: Cluster, namespace: str
) -> None:
    async with (
        connect(cluster.urls[0], namespace=namespace, timeout=30) as writer,
        connect(cluster.urls[2], namespace=namespace, timeout=30) as reader,
    ):
        for number in range(30):
            await writer.set("count", number)
            seen: list[object] = []
            async for item in reader.watch("count", start="all"):
                if isinstance(item, CaughtUp):
                    break
                seen.append(item.data)
            assert seen == list(range(number + 1))
