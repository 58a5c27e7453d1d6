"""Erasure on three servers: nothing is left of a key on any of them, and nothing else is lost."""

import asyncio
from base64 import b64encode

from agentfield import connect
from tests.support import Cluster, eventually
from tests.support.native import NatsServer

SECRET = "ada@example.org"


def files_with(cluster: Cluster, needle: bytes) -> list[str]:
    """Every file of any server that holds these bytes."""
    found = []
    for node in cluster.nodes:
        assert isinstance(node, NatsServer)
        for path in node.store.rglob("*"):
            try:
                if path.is_file() and needle in path.read_bytes():
                    found.append(f"{node.name} {path.relative_to(node.store)}")
            except FileNotFoundError:  # the server has just removed it
                continue
    return found


async def test_no_file_of_any_server_holds_a_key_that_was_destroyed(cluster: Cluster, namespace: str) -> None:
    first, second = (connect(url, namespace=namespace) for url in cluster.urls[:2])
    async with first as one, second as two:
        await one.set_personal(["session"])

        async def knows() -> bool:
            return bool((await two._fabric()).keys.policies.known)

        await eventually(knows, what="the other process knows the policy")
        await two.session("user-1").set("email", SECRET)
        await two.session("user-2").set("email", "bob")
        keys = (await one._fabric()).keys
        (destroyed,) = await keys.stored(["session.user-1"])
        (kept,) = await keys.stored(["session.user-2"])
        needle, control = b64encode(destroyed.key.secret), b64encode(kept.key.secret)
        assert any("_js_" in path for path in files_with(cluster, needle)), "a journal is what this is about"
        receipt = await one.erase(scope="session", scope_id="user-1")
        assert receipt.covered == 1

        async def made_anew() -> bool:
            return receipt.complete or (await one.erase(scope="session", scope_id="user-1")).complete

        await eventually(made_anew, within=40, what="the journals are made anew as soon as every replica is there")
        assert files_with(cluster, needle) == []
        assert len({path.split()[0] for path in files_with(cluster, control)}) == 3
        for memory in (one, two):
            assert await memory.session("user-1").get("email", "absent") == "absent"
            assert await memory.session("user-2").get("email") == "bob"
        await two.session("user-1").set("email", "again")
        assert await one.session("user-1").get("email") == "again"
    for node in cluster.nodes:
        await node.stop()
    assert files_with(cluster, needle) == []


async def test_with_a_server_away_the_erasure_is_done_and_says_what_is_not(cluster: Cluster, namespace: str) -> None:
    async with connect(",".join(cluster.urls), namespace=namespace, timeout=40) as memory:
        await memory.set_personal(["session"])
        await memory.session("user-1").set("email", SECRET)
        fabric = await memory._fabric()
        leader = await cluster.stream_leader(fabric.topology.keys.name)
        away = cluster.others(leader)[0]
        await away.kill()
        receipt = await memory.erase(scope="session", scope_id="user-1")
        assert (receipt.covered, receipt.journals_renewed, receipt.complete) == (1, False, False)
        assert await memory.session("user-1").get("email", "absent") == "absent"
        await cluster.heal()

        async def made_anew() -> bool:
            return (await memory.erase(scope="session", scope_id="user-1")).complete

        await eventually(made_anew, within=40, what="the journals are made anew once the server is back")


async def test_many_writers_of_one_personal_scope_get_all_their_writes_in(cluster: Cluster, namespace: str) -> None:
    """All of them check one subject, which a clustered stream lets only one message at a time do."""
    first, second = (connect(url, namespace=namespace) for url in cluster.urls[:2])
    async with first as one, second as two:
        await one.set_personal(["session"])
        await (await two._fabric()).keys.policies.present()
        revisions = await asyncio.gather(
            *((one, two)[number % 2].session("u").set(f"k_{number}", number) for number in range(100))
        )
        assert len(set(revisions)) == 100
        assert {entry.key: entry.value async for entry in one.session("u").items()} == {
            f"k_{number}": number for number in range(100)
        }
