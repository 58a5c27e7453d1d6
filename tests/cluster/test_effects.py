"""On three replicas, too, what a handler writes is stored once."""

from agentfield import connect
from tests.integration.test_effects import OPERATIONS, count, events, handling
from tests.support import Cluster


async def test_each_operation_repeated_for_the_same_event_is_stored_once_and_returns_the_same(
    cluster: Cluster, namespace: str
) -> None:
    async with connect(cluster.urls[0], namespace=namespace) as memory:
        for number, (name, operation) in enumerate(OPERATIONS.items()):
            here = memory.session(f"s{number}")
            revision = await here.set("here", 0)
            outcomes = []
            for _ in range(3):
                if name == "delete if unchanged":
                    with handling(namespace, revision=revision):
                        outcomes.append(await here.delete("here", if_revision=revision))
                else:
                    with handling(namespace, revision=revision):
                        outcomes.append(await operation(here))
            assert outcomes == [outcomes[0]] * 3, name
            stored = [event async for event in here.history()]
            assert len(stored) == 1 + (2 if "set_many" in name and "one" not in name else 1), name


async def test_a_marked_event_is_handled_once(cluster: Cluster, namespace: str) -> None:
    async with connect(cluster.urls[0], namespace=namespace) as memory:
        revisions = [await memory.set("k", number) for number in range(3)]
        seen = []
        for revision in (*revisions, *revisions):
            with handling(namespace, revision=revision):
                seen.append(await count(memory))
        assert seen == [False] * 3 + [True] * 3
        assert await memory.get("n") == 3
        assert len(await events(memory, "n")) == 3
