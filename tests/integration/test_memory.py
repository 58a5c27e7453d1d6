"""Memory as users call it: scopes and their order, views, entries, many keys, items, what is refused."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agentfield import Agent, Entry, InvalidInputError, Memory, connect
from tests.support import NatsServer


async def test_two_plain_programs_share_state_with_no_ceremony(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as one, connect(server.url, namespace=namespace) as other:
        await one.set("key", {"a": 1})
        assert await other.get("key") == {"a": 1}


async def test_an_unscoped_read_takes_the_first_of_workflow_session_actor_global(
    server: NatsServer, namespace: str
) -> None:
    agent = Agent("reader", nats_url=server.url, namespace=namespace)
    async with agent, agent.workflow("w"), agent.session("s"):
        memory = agent.memory
        answers = []
        for view in (memory.global_scope, memory.actor(), memory.session(), memory.workflow()):
            await view.set("k", repr(view))
            entry = await memory.entry("k")
            assert entry is not None
            answers.append(entry.scope)
        assert answers == ["global", "actor", "session", "workflow"]
        for expected in ("session", "actor", "global", None):
            await memory.delete("k", scope={"session": "workflow", "actor": "session", "global": "actor"}.get(
                expected or "", "global"
            ))  # fmt: skip
            entry = await memory.entry("k")
            assert (entry.scope if entry else None) == expected


async def test_an_unscoped_write_goes_to_the_workflow_else_the_session_else_global(
    server: NatsServer, namespace: str
) -> None:
    agent = Agent("writer", nats_url=server.url, namespace=namespace)
    memory = agent.memory
    async with agent:
        await memory.set("k", "global")
        async with agent.session("s"):
            await memory.set("k", "session")
            async with agent.workflow("w"):
                await memory.set("k", "workflow")
        assert await memory.get("k", scope="global") == "global"
        assert await memory.get("k", scope="session", scope_id="s") == "session"
        assert await memory.get("k", scope="workflow", scope_id="w") == "workflow"


async def test_an_actors_scope_is_its_own(server: NatsServer, namespace: str) -> None:
    one, other = (Agent(name, nats_url=server.url, namespace=namespace) for name in ("one", "other"))
    async with one, other:
        await one.memory.set("queue", 1, scope="actor")
        assert await one.memory.get("queue") == 1
        assert await other.memory.get("queue") is None
        assert await other.memory.get("queue", scope="actor") is None


async def test_ids_that_look_alike_are_different_scopes(memory: Memory) -> None:
    ids = ["a", "a.b", "a:b", "a_b", "a b", "a*", "a>", "ä", "a=2E", "A"]
    for id in ids:
        await memory.session(id).set("k", id)
    assert [await memory.session(id).get("k") for id in ids] == ids


async def test_none_is_a_value_and_absent_is_the_default(memory: Memory) -> None:
    await memory.set("none", None)
    assert await memory.get("none", "default") is None
    assert await memory.exists("none")
    assert await memory.get("absent", "default") == "default"
    assert not await memory.exists("absent")
    await memory.delete("none")
    assert await memory.get("none", "default") == "default"


async def test_an_entry_says_what_when_who_and_where(memory: Memory) -> None:
    before = datetime.now(UTC)
    revision = await memory.session("s").set("k", [1], ttl=3600)
    entry = await memory.session("s").entry("k")
    assert isinstance(entry, Entry)
    assert (entry.key, entry.value, entry.revision) == ("k", [1], revision)
    assert (entry.scope, entry.scope_id) == ("session", "s")
    assert abs(entry.timestamp - before) < timedelta(seconds=5)
    assert entry.expires_at == entry.timestamp + timedelta(seconds=3600)
    assert entry.writer.agent is None
    assert await memory.entry("absent") is None


async def test_delete_says_whether_there_was_something_and_writes_nothing_if_not(memory: Memory) -> None:
    await memory.set("k", 1)
    assert await memory.delete("k") is True
    assert await memory.delete("k") is False
    assert await memory.delete("never") is False
    assert [event.operation async for event in memory.history("k")] == ["set", "delete"]
    assert [event async for event in memory.history("never")] == []


async def test_many_keys_in_one_call_in_the_order_asked(memory: Memory) -> None:
    await memory.set_many({f"k_{number}": number for number in range(500)})
    wanted = [f"k_{number}" for number in range(600, -1, -1)]
    found = await memory.get_many(wanted)
    assert list(found.items()) == [(f"k_{number}", number) for number in range(499, -1, -1)]
    assert await memory.get_many([]) == {}


async def test_items_gives_each_key_once_from_the_narrowest_scope(server: NatsServer, namespace: str) -> None:
    agent = Agent("lister", nats_url=server.url, namespace=namespace)
    async with agent, agent.workflow("w"), agent.session("s"):
        memory = agent.memory
        await memory.set("order_1", "workflow")
        await memory.set("order_1", "session", scope="session")
        await memory.set("order_2", "session", scope="session")
        await memory.set("order_2", "global", scope="global")
        await memory.set("order_3", "gone")
        await memory.delete("order_3")
        await memory.set("other", 1)
        found = {entry.key: (entry.value, entry.scope) async for entry in memory.items("order_*")}
        assert found == {"order_1": ("workflow", "workflow"), "order_2": ("session", "session")}
        assert {key async for key in memory.keys()} == {"order_1", "order_2", "other"}
        assert [entry.value async for entry in memory.items("order_*", scope="global")] == ["global"]


async def test_items_beyond_what_one_answer_holds(memory: Memory) -> None:
    for begin in range(0, 3000, 1000):
        await memory.set_many({f"k_{number}": number for number in range(begin, begin + 1000)})
    await memory.delete("k_7")
    values = [entry.value async for entry in memory.items("k_*")]
    assert sorted(values) == [number for number in range(3000) if number != 7]


async def test_a_view_is_the_same_api_bound_to_one_scope(memory: Memory) -> None:
    view = memory.session("s")
    await view.set("k", 1)
    assert await view.get("k") == 1
    assert await memory.get("k") is None
    assert [entry.key async for entry in view.items()] == ["k"]
    with pytest.raises(InvalidInputError, match="bound to the session scope"):
        await view.get("k", scope="global")
    with pytest.raises(InvalidInputError, match="bound to the session scope"):
        view.workflow("w")
    assert await view.clear() == 1


@pytest.mark.parametrize(
    ("key", "fact"),
    [
        ("", "empty"),
        ("a*", r"\*"),
        ("a>", ">"),
        ("a\nb", "control"),
        ("k" * 513, "512"),
        (7, "int"),
    ],
)
async def test_an_illegal_key_is_refused_by_every_operation_before_anything_is_written(
    memory: Memory, key: str, fact: str
) -> None:
    for call in (
        lambda: memory.set(key, 1),
        lambda: memory.get(key),
        lambda: memory.delete(key),
        lambda: memory.create(key, 1),
        lambda: memory.update(key, lambda value: value),
        lambda: memory.increment(key),
        lambda: memory.set_many({"fine": 1, key: 1}),
        lambda: memory.get_many(["fine", key]),
    ):
        with pytest.raises(InvalidInputError, match=fact):
            await call()
    assert [event async for event in memory.history()] == []


async def test_an_illegal_scope_value_ttl_or_revision_is_refused_before_anything_is_written(memory: Memory) -> None:
    for call, fact in (
        (lambda: memory.set("k", 1, scope="planet"), "planet"),
        (lambda: memory.set("k", 1, scope_id="x"), "without a scope"),
        (lambda: memory.set("k", 1, scope="session"), "no session is bound"),
        (lambda: memory.set("k", 1, scope="workflow"), "no workflow is running"),
        (lambda: memory.set("k", 1, scope="actor"), "belongs to no agent"),
        (lambda: memory.set("k", 1, scope="global", scope_id="x"), "of which there is one"),
        (lambda: memory.set("k", 1, scope="session", scope_id=""), "empty"),
        (lambda: memory.set("k", object()), "object"),
        (lambda: memory.set("k", {1, 2}), "set"),
        (lambda: memory.set("k", float("nan")), "nan"),
        (lambda: memory.set("k", 2**64), "64"),
        (lambda: memory.set("k", 1, ttl=-1), "-1"),
        (lambda: memory.set("k", 1, ttl=0), "0"),
        (lambda: memory.set("k", 1, if_revision=-1), "-1"),
        (lambda: memory.set("k", 1, if_revision="1"), "'1'"),  # type: ignore[arg-type]
        (lambda: memory.clear(), "without a scope"),
        (lambda: memory.get_many("k"), "give a list"),
    ):
        with pytest.raises(InvalidInputError, match=f"(?i){fact}"):
            await call()
    assert [event async for event in memory.history()] == []


async def test_a_hundred_concurrent_users_of_one_memory(memory: Memory) -> None:
    async def user(number: int) -> None:
        await memory.set(f"u_{number}", number)
        assert await memory.get(f"u_{number}") == number
        assert await memory.delete(f"u_{number}")

    await asyncio.gather(*(user(number) for number in range(100)))
    assert [key async for key in memory.keys()] == []
