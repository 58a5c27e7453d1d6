"""What a handler does to memory happens once, however often its event comes."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentfield import Agent, ConflictError, Event, InvalidInputError, Memory, connect
from agentfield.codec import encrypted_by, is_delete
from agentfield.effects import Effects
from agentfield.execution import Execution, current
from agentfield.fabric.fabric import Fabric
from agentfield.memory import merges
from agentfield.testing import settled
from tests.support import NatsServer, eventually
from tests.support.running import program

Body = Callable[[], Awaitable[Any]]


@contextmanager
def handling(namespace: str, *, revision: int = 1, key: str = "k", handler: str = "react") -> Iterator[None]:
    """Be a handler in a process that has just begun to handle an event, and knows of no earlier run."""
    effects = Effects(
        agent="tester",
        handler=handler,
        event_id=f"event-{revision}",
        revision=revision,
        subject=f"{namespace}.memory.global.global.{key}",
    )
    here = Execution("e", None, None, "tester", None, cause=f"event-{revision}", function=handler, effects=effects)
    token = current.set(here)
    try:
        yield
    finally:
        current.reset(token)


async def events(memory: Memory, pattern: str = "*") -> list[Event]:
    return [event async for event in memory.history(pattern)]


OPERATIONS: dict[str, Callable[[Memory], Awaitable[Any]]] = {
    "set": lambda memory: memory.set("x", 1),
    "set with a ttl": lambda memory: memory.set("x", 1, ttl=60),
    "set if absent": lambda memory: memory.set("x", 1, if_revision=0),
    "set of a large value": lambda memory: memory.set("x", "x" * 300_000),
    "set of a large value if absent": lambda memory: memory.set("x", "x" * 300_000, if_revision=0),
    "create": lambda memory: memory.create("x", 1),
    "delete": lambda memory: memory.delete("here"),
    "delete if unchanged": lambda memory: memory.delete("here", if_revision=2),
    "update": lambda memory: memory.update("x", merges.append(["tea"])),
    "increment": lambda memory: memory.increment("x", by=5),
    "set_many": lambda memory: memory.set_many({"x": 1, "y": 2}),
    "set_many of one": lambda memory: memory.set_many({"x": 1}),
    "large set_many": lambda memory: memory.set_many({"x": "x" * 300_000, "y": 2}),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_is_written_when_the_event_comes_again_is_not_stored_and_returns_the_same(
    memory: Memory, namespace: str, operation: str
) -> None:
    await memory.set("there", 0)
    await memory.set("here", 0)
    outcomes = []
    for _ in range(3):
        with handling(namespace):
            outcomes.append(await OPERATIONS[operation](memory))
    assert outcomes == [outcomes[0]] * 3
    assert len(await events(memory)) == 2 + (2 if "set_many" in operation and "one" not in operation else 1)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_is_encrypted_anew_each_time_is_recognised_by_what_it_says(
    memory: Memory, namespace: str, operation: str
) -> None:
    """No two envelopes of a value are alike; the id of the write does not come from the envelope."""
    await memory.set_personal(patterns=["*"])  # is in the log, before the first event
    await memory.set("here", 0)
    outcomes = []
    for _ in range(3):
        with handling(namespace):
            outcomes.append(await OPERATIONS[operation](memory))
    assert outcomes == [outcomes[0]] * 3
    (_, *written) = await events(memory)
    assert len(written) == (2 if "set_many" in operation and "one" not in operation else 1)
    fabric = await memory._fabric()
    filters = [f"{fabric.subjects.namespace}.memory.>"]
    records = [record async for record in fabric.log.read(filters) if not is_delete(record)]
    assert all(encrypted_by(record) for record in records)


async def test_a_transaction_of_personal_values_is_recognised_when_its_event_comes_again(
    memory: Memory, namespace: str
) -> None:
    await memory.set_personal(patterns=["*"])
    for _ in range(2):
        with handling(namespace):
            async with memory.transaction() as tx:
                tx.set("x", 1)
                tx.set("y", 2)
    assert [event.key for event in await events(memory)] == ["x", "y"]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_for_another_event_it_is_another_write(memory: Memory, namespace: str, operation: str) -> None:
    await memory.set("there", 0)
    await memory.set("here", 0)
    with handling(namespace, revision=1):
        await OPERATIONS[operation](memory)
    before = len(await events(memory))
    with handling(namespace, revision=2):
        if "absent" in operation or operation in ("create", "delete if unchanged"):
            with pytest.raises(ConflictError):
                await OPERATIONS[operation](memory)
        else:
            await OPERATIONS[operation](memory)
    grown = len(await events(memory)) > before
    assert grown is not ("absent" in operation or operation.startswith(("create", "delete")))


async def test_outside_a_handler_every_write_is_one_of_its_own(memory: Memory) -> None:
    for _ in range(3):
        await memory.set("x", 1)
        await memory.increment("y")
    assert len(await events(memory)) == 6


async def test_a_different_content_is_stored_alone_and_in_a_batch(memory: Memory, namespace: str) -> None:
    for value in (1, 2):
        with handling(namespace):
            await memory.set("x", value)
            await memory.set_many({"y": 1, "z": value})
    assert await memory.get_many(["x", "y", "z"]) == {"x": 2, "y": 1, "z": 2}
    assert len(await events(memory)) == 6


async def test_what_others_wrote_meanwhile_stays(memory: Memory, namespace: str) -> None:
    returned = []
    for _ in range(2):
        with handling(namespace):
            returned.append((await memory.set("x", "the handler's"), await memory.increment("n")))
        await memory.set("x", "somebody else's")
        await memory.increment("n", by=10)
    assert returned == [(1, 1), (1, 1)]
    assert await memory.get_many(["x", "n"]) == {"x": "somebody else's", "n": 21}


async def test_what_was_made_before_is_no_conflict_though_it_has_been_overwritten_since(
    memory: Memory, namespace: str
) -> None:
    revision = await memory.set("old", 1)
    returned = []
    for _ in range(2):
        with handling(namespace):
            returned.append(
                (
                    await memory.create("x", 1),
                    await memory.set("y", 1, if_revision=0),
                    await memory.delete("old", if_revision=revision),
                )
            )
        for key in ("x", "y", "old"):
            await memory.set(key, "somebody else's")
    assert returned == [(2, 3, True)] * 2
    assert len(await events(memory)) == 4 + 6


async def test_the_writes_of_one_run_are_as_many_as_it_makes(memory: Memory, namespace: str) -> None:
    for _ in range(2):
        with handling(namespace):
            for value in (1, 2, 1):
                await memory.set("x", value)
            await asyncio.gather(*(memory.increment("n") for _ in range(5)))
    assert [event.data for event in await events(memory, "x")] == [1, 2, 1]
    assert await memory.get("n") == 5


async def test_an_event_id_of_ones_own_is_kept(memory: Memory, namespace: str) -> None:
    with handling(namespace):
        await memory.set("x", 1, event_id="mine")
    assert [event.id for event in await events(memory)] == ["mine"]


async def test_a_condition_that_was_lost_and_won_again_leaves_the_same_id(memory: Memory, namespace: str) -> None:
    await memory.set("x", "old")
    with handling(namespace):
        for wrong in (7, 8):
            with pytest.raises(ConflictError):
                await memory.set("x", "new", if_revision=wrong)
        won = await memory.set("x", "new", if_revision=1)
    with handling(namespace):
        assert await memory.set("x", "new", if_revision=1) == won
    assert len(await events(memory)) == 2


async def test_a_handler_that_failed_after_a_write_does_not_write_it_again(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    tries: list[int] = []

    @agent.memory.on_change("k")
    async def react(event: Event) -> None:
        tries.append(event.revision)
        await agent.memory.set("before", event.data)
        await agent.memory.increment("count")
        async with agent.memory.transaction() as tx:
            tx.set("a", 1)
            tx.set("b", 1)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        await agent.memory.set("after", event.data)

    async with agent:
        await memory.set("k", 1)
        await settled(agent)
    assert len(tries) == 3
    assert Counter(event.key for event in await events(memory)) == dict.fromkeys(
        ("k", "before", "count", "a", "b", "after"), 1
    )


async def test_a_state_that_a_failed_run_left_is_set_anew_by_the_next(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    tries = 0

    @agent.memory.on_change("k")
    async def react(_: Event) -> None:
        nonlocal tries
        tries += 1
        await agent.memory.set("status", "fine")
        if tries == 1:
            await agent.memory.set("status", "failed")
            raise RuntimeError("not yet")

    async with agent:
        await memory.set("k", 1)
        await settled(agent)
    assert await memory.get("status") == "fine"
    assert [event.data for event in await events(memory, "status")] == ["fine", "failed", "fine"]


async def test_a_state_that_somebody_else_set_after_a_failed_run_stays(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    tries = 0

    @agent.memory.on_change("k")
    async def react(_: Event) -> None:
        nonlocal tries
        tries += 1
        await agent.memory.set("status", "fine")
        if tries == 1:
            await agent.memory.set("status", "failed")
            async with connect(server.url, namespace=namespace) as somebody:
                await somebody.set("status", "somebody else's", event_id="theirs")
            raise RuntimeError("not yet")

    async with agent:
        await memory.set("k", 1)
        await settled(agent)
    assert tries == 2
    assert await memory.get("status") == "somebody else's"


async def test_a_crash_after_a_failed_run_leaves_what_the_whole_run_says(memory: Memory, namespace: str) -> None:
    with handling(namespace):
        await memory.set("status", "working")
        await memory.set("status", "done")
        running = current.get()
        assert running is not None
        assert running.effects is not None
        running.effects.again()
        await memory.set("status", "working")
    with handling(namespace):
        await memory.set("status", "working")
        await memory.set("status", "done")
    assert await memory.get("status") == "done"
    assert [event.data for event in await events(memory, "status")] == ["working", "done"]


# -- once -------------------------------------------------------------------------------------------------------------


async def count(memory: Memory, key: str = "n") -> bool:
    """Add one, once; whether that had been done before."""
    async with memory.transaction(once=True) as tx:
        tx.set(key, await tx.get(key, 0) + 1)
    return tx.handled


async def test_once_stores_nothing_when_the_event_has_been_handled_and_says_so(memory: Memory, namespace: str) -> None:
    first, second, third = [await memory.set("k", number) for number in range(3)]
    seen = []
    for revision in (first, first, second, first, second, third):
        with handling(namespace, revision=revision):
            seen.append(await count(memory))
    assert seen == [False, True, False, True, True, False]
    assert await memory.get("n") == 3
    assert len(await events(memory)) == 6, "the markers are no events of keys"


async def test_a_marker_is_of_one_handler_and_one_key(memory: Memory, namespace: str) -> None:
    for handler, key in (("react", "k"), ("other", "k"), ("react", "l")):
        with handling(namespace, handler=handler, key=key):
            assert not await count(memory)
    assert await memory.get("n") == 3


async def test_an_event_left_out_can_be_handled_after_later_ones_and_then_only_once(
    memory: Memory, namespace: str
) -> None:
    revisions = [await memory.set("k", number) for number in range(6)]
    left_out = revisions.pop(2)

    async def handle(revision: int) -> bool:
        with handling(namespace, revision=revision):
            return await count(memory)

    assert not any([await handle(revision) for revision in revisions])
    assert not await handle(left_out), "a later event's marker says nothing of this one"
    assert all([await handle(revision) for revision in [*revisions, left_out]])
    assert await memory.get("n") == 6


async def test_of_two_instances_at_one_event_one_stores(memory: Memory, namespace: str) -> None:
    entered = asyncio.Barrier(2)

    async def instance() -> bool:
        with handling(namespace):
            async with memory.transaction(once=True) as tx:
                await entered.wait()
                tx.set("n", 1)
                tx.set(f"by_{id(tx)}", 1)
            return tx.handled

    assert sorted(await asyncio.gather(instance(), instance())) == [False, True]
    assert len(await events(memory)) == 2


async def test_what_the_server_has_long_forgotten_is_still_known_by_its_marker(
    memory: Memory, namespace: str, fabric: Fabric
) -> None:
    """The ids are others than before, as they would be for a server that had forgotten them."""
    with handling(namespace):
        assert not await count(memory)
    with handling(namespace):
        async with memory.transaction(once=True) as tx:
            tx.set("n", "something else")
    assert tx.handled
    assert tx.revision is None
    assert await memory.get("n") == 1
    marker = await fabric.log.last_of(f"{namespace}.checks.handled.tester.react.>")
    assert marker is not None
    assert marker.subject == f"{namespace}.checks.handled.tester.react.global.global.k"


async def test_a_transaction_without_writes_marks_the_event(memory: Memory, namespace: str) -> None:
    for expected in (False, True):
        with handling(namespace):
            async with memory.transaction(once=True) as tx:
                pass
        assert tx.handled is expected
        assert tx.revision is None


async def test_large_values_are_stored_once_too(memory: Memory, namespace: str) -> None:
    for expected in (False, True):
        with handling(namespace):
            async with memory.transaction(once=True) as tx:
                tx.set("large", "x" * 300_000)
                tx.set("small", 1)
        assert tx.handled is expected
    assert len(await events(memory)) == 2


async def test_a_block_that_fails_marks_nothing_and_can_be_tried_again(memory: Memory, namespace: str) -> None:
    await memory.set("n", 10)

    async def broken_off() -> None:
        async with memory.transaction(once=True) as tx:
            tx.set("n", 11)
            raise ZeroDivisionError

    async def overtaken() -> None:
        async with memory.transaction(once=True) as tx:
            tx.set("n", await tx.get("n") + 1)
            await memory.set("n", 20)

    with handling(namespace):
        with pytest.raises(ZeroDivisionError):
            await broken_off()
        with pytest.raises(ConflictError):
            await overtaken()
        assert not await count(memory)
    assert await memory.get("n") == 21


async def test_a_second_one_in_a_run_is_refused_even_if_the_first_had_been_handled(
    memory: Memory, namespace: str
) -> None:
    for _ in range(2):
        with handling(namespace):
            await count(memory)
            with pytest.raises(InvalidInputError, match="one transaction"):
                await count(memory)
    assert await memory.get("n") == 1


async def test_outside_a_handler_and_in_what_it_calls_it_is_refused(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    refused: list[str] = []

    @agent.reasoner()
    async def called() -> None:
        with pytest.raises(InvalidInputError, match="in a handler itself"):
            agent.memory.transaction(once=True)
        refused.append("called")

    @agent.memory.on_change("k")
    async def react(_: Event) -> None:
        await agent.call("tester.called")

    with pytest.raises(InvalidInputError, match="in a handler itself"):
        memory.transaction(once=True)
    async with agent:
        await memory.set("k", 1)
        await settled(agent)
    assert refused == ["called"]


async def test_in_another_namespace_than_the_event_it_is_refused(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=f"{namespace}2") as elsewhere:
        with handling(namespace), pytest.raises(InvalidInputError, match="came from"):
            await count(elsewhere)


# -- with everything that can happen ----------------------------------------------------------------------------------


async def test_handlers_killed_at_random_leave_each_effect_once(
    server: NatsServer, namespace: str, memory: Memory, tmp_path: Path
) -> None:
    total, kills, path = 300, 3, tmp_path / "runs"

    def runs() -> Counter[str]:
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    await asyncio.gather(*(memory.set(f"order_{number % 40}", 1) for number in range(total)))
    for kill in range(kills):
        async with program("effects", server.url, namespace, path) as running:
            goal = (kill + 1) * 2 * total // (kills + 1)
            await eventually(lambda: len(runs()) >= goal, within=30)  # noqa: B023
            await running.kill()
    assert max(runs().values()) > 1, "no kill came between a write and its acknowledgement: this proves nothing"
    async with program("effects", server.url, namespace, path):
        await eventually(lambda: len(runs()) == 2 * total, within=30)

        async def done() -> bool:
            return len(await events(memory)) >= 8 * total

        await eventually(done, within=10, what="every event has been handled to its end")
        found = Counter(event.key.split("_", 1)[0] for event in await events(memory))
    assert await memory.get("total") == total
    assert found == {
        "order": total, "seen": 2 * total, "a": total, "b": total, "new": 2 * total, "total": total,
    }  # fmt: skip
