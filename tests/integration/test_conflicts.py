"""Writers who meet on one key: one of them wins, the others are told or begin again, and no update is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from agentfield import ConflictError, InvalidInputError, Memory, OutcomeUnknownError, connect
from agentfield.execution import new_id
from agentfield.memory import merges
from tests.support import NatsServer, eventually

Connect = Callable[[], Awaitable[Memory]]


@pytest.fixture
async def another(server: NatsServer, namespace: str) -> AsyncIterator[Connect]:
    """Return a function that gives memory over a connection of its own."""
    async with AsyncExitStack() as stack:
        yield lambda: stack.enter_async_context(connect(server.url, namespace=namespace))


async def history(memory: Memory, key: str) -> list[Any]:
    return [event async for event in memory.history(key)]


# -- if_revision ------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_a_write_that_expects_the_present_revision_succeeds_and_any_other_is_refused(memory: Memory) -> None:
    first = await memory.set("key", 1, if_revision=0)
    second = await memory.set("key", 2, if_revision=first)
    for stale in (0, first, second + 1):
        with pytest.raises(ConflictError) as conflict:
            await memory.set("key", 3, if_revision=stale)
        assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == ("key", stale, second)
        with pytest.raises(ConflictError) as conflict:
            await memory.delete("key", if_revision=stale)
        assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == ("key", stale, second)
    assert [event.data for event in await history(memory, "key")] == [1, 2]
    assert await memory.delete("key", if_revision=second)
    assert not await memory.exists("key")


async def test_a_deleted_key_still_has_a_revision(memory: Memory) -> None:
    await memory.set("key", 1)
    await memory.delete("key")
    (_, tombstone) = await history(memory, "key")
    with pytest.raises(ConflictError) as conflict:
        await memory.set("key", 2, if_revision=0)
    assert conflict.value.actual == tombstone.revision
    await memory.set("key", 2, if_revision=tombstone.revision)
    assert await memory.get("key") == 2


@pytest.mark.parametrize("wrong", [-1, 1.0, True, "1"])
async def test_what_can_be_no_revision_is_refused_before_anything_is_sent(memory: Memory, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="if_revision"):
        await memory.set("key", 1, if_revision=wrong)
    with pytest.raises(InvalidInputError, match="if_revision"):
        await memory.delete("key", if_revision=wrong)
    assert not await history(memory, "key")


async def test_of_many_conditional_writes_on_one_revision_exactly_one_succeeds(another: Connect) -> None:
    writers = [await another() for _ in range(4)]
    revision = await writers[0].set("key", "old")
    outcomes = await asyncio.gather(
        *(writers[number % 4].set("key", number, if_revision=revision) for number in range(40)), return_exceptions=True
    )
    won = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(won) == 1
    assert all(isinstance(outcome, (int, ConflictError)) for outcome in outcomes)
    assert await writers[1].get("key") == won[0]


async def test_repeating_a_conditional_write_of_unknown_outcome_finds_that_it_was_stored(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=0.5) as memory:
        first = await memory.set("key", 1)
        await fresh_server.pause()
        with pytest.raises(OutcomeUnknownError) as unknown:
            await memory.set("key", 2, if_revision=first)
        await fresh_server.resume()
        await eventually(lambda: memory.exists("key"))
    async with connect(fresh_server.url, namespace=namespace) as memory:
        again = await memory.set("key", 2, if_revision=first, event_id=unknown.value.event_id)
        await memory.set("key", 3)
        assert await memory.set("key", 2, if_revision=first, event_id=unknown.value.event_id) == again
        assert [event.data for event in await history(memory, "key")] == [1, 2, 3]
        with pytest.raises(ConflictError):
            await memory.set("key", 4, if_revision=first, event_id=new_id())


async def test_repeating_a_set_many_of_unknown_outcome_stores_it_once(fresh_server: NatsServer, namespace: str) -> None:
    values = {"a": 1, "b": 2, "c": 3}
    async with connect(fresh_server.url, namespace=namespace, timeout=0.5) as memory:
        await memory.set("a", 0)
        await fresh_server.pause()
        with pytest.raises(OutcomeUnknownError) as unknown:
            await memory.set_many(values)
        await fresh_server.resume()
        await eventually(lambda: memory.exists("c"))
    async with connect(fresh_server.url, namespace=namespace) as memory:
        revision = await memory.set_many(values, event_id=unknown.value.event_id)
        assert await memory.set_many(values, event_id=unknown.value.event_id) == revision
        assert [event.data for event in await history(memory, "*")] == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [2, "x" * 300_000], ids=["small", "large"])
async def test_the_id_of_a_write_to_another_key_is_refused_instead_of_taken_for_a_repetition(
    memory: Memory, value: Any
) -> None:
    revision = await memory.set("key", 1, event_id="id-1")
    assert await memory.set("key", 1, event_id="id-1") == revision
    assert await memory.set("key", "another value", event_id="id-1") == revision
    assert await memory.get("key") == 1
    with pytest.raises(InvalidInputError, match=rf"'id-1' was given to another write.*revision {revision}: nothing"):
        await memory.set("other", value, event_id="id-1")
    assert not await memory.exists("other")


@pytest.mark.parametrize(
    "values",
    [{"a": 1, "d": 2}, {"d": 1, "b": 2}, {"d": 1}, {"a": 1, "b": 2, "c": 3}, {"c": 0, "a": 1, "b": 2}],
    ids=str,
)
async def test_the_id_of_another_set_many_is_refused_at_once(memory: Memory, values: dict[str, int]) -> None:
    first = {"a": 1, "b": 2}
    revision = await memory.set_many(first, event_id="id-1")
    await memory.set("a", 3)
    async with asyncio.timeout(5):
        with pytest.raises(InvalidInputError, match="'id-1' was given to another write"):
            await memory.set_many(values, event_id="id-1")
    assert await memory.set_many(first, event_id="id-1") == revision
    assert await memory.get_many(["a", "b", "c", "d"]) == {"a": 3, "b": 2}


# -- create -----------------------------------------------------------------------------------------------------------


async def test_create_stores_only_where_there_is_no_value(memory: Memory) -> None:
    revision = await memory.create("key", 1)
    with pytest.raises(
        ConflictError, match="'key' has a value already, of revision 1; nothing was written"
    ) as conflict:
        await memory.create("key", 2)
    assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == ("key", 0, revision)
    assert await memory.get("key") == 1


async def test_a_deleted_key_can_be_created_again(memory: Memory) -> None:
    first = await memory.create("key", 1)
    await memory.delete("key")
    assert await memory.create("key", 2) > first
    assert await memory.get("key") == 2


async def test_an_expired_key_can_be_created_again_before_anybody_has_deleted_it(memory: Memory) -> None:
    await memory.create("key", 1, ttl=0.2)
    with pytest.raises(ConflictError):
        await memory.create("key", 2)
    await eventually(lambda: _absent(memory, "key"))
    await memory.create("key", 2)
    assert [(event.operation, event.data) for event in await history(memory, "key")] == [("set", 1), ("set", 2)]


async def test_a_stored_null_is_a_value(memory: Memory) -> None:
    await memory.set("key", None)
    with pytest.raises(ConflictError):
        await memory.create("key", 1)


@pytest.mark.parametrize("before", ["nothing", "tombstone", "expired"])
async def test_of_many_creators_exactly_one_succeeds(another: Connect, before: str) -> None:
    creators = [await another() for _ in range(4)]
    if before == "tombstone":
        await creators[0].set("key", "old")
        await creators[0].delete("key")
    elif before == "expired":
        await creators[0].set("key", "old", ttl=0.05)
        await eventually(lambda: _absent(creators[0], "key"))
    outcomes = await asyncio.gather(
        *(creators[number % 4].create("key", number) for number in range(40)), return_exceptions=True
    )
    won = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(won) == 1
    revision = outcomes[won[0]]
    lost = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
    assert len(lost) == 39
    assert {(error.expected, error.actual) for error in lost} == {(0, revision)}


# -- update -----------------------------------------------------------------------------------------------------------


async def test_an_update_that_takes_long_is_still_right(another: Connect) -> None:
    memory, other = await another(), await another()
    await memory.set("key", ["start"])
    computing, go_on = asyncio.Event(), asyncio.Event()
    seen: list[list[str]] = []

    async def slowly(value: list[str]) -> list[str]:
        seen.append(list(value))
        computing.set()
        await go_on.wait()
        return [*value, "slow"]

    updating = asyncio.create_task(memory.update("key", slowly))
    await computing.wait()
    for number in range(5):
        await other.update("key", merges.append(number))
    go_on.set()
    assert await updating == ["start", 0, 1, 2, 3, 4, "slow"]
    assert seen == [["start"], ["start", 0, 1, 2, 3, 4]]
    assert await other.get("key") == ["start", 0, 1, 2, 3, 4, "slow"]


async def test_a_function_that_raises_stores_nothing_and_its_exception_is_raised(memory: Memory) -> None:
    await memory.set("key", 1)

    def fail(value: Any) -> Any:
        raise ZeroDivisionError(value)

    async def fail_later(value: Any) -> Any:
        await asyncio.sleep(0)
        fail(value)

    for function in (fail, fail_later):
        with pytest.raises(ZeroDivisionError):
            await memory.update("key", function)
    with pytest.raises(InvalidInputError):
        await memory.update("key", lambda value: object())
    assert len(await history(memory, "key")) == 1


async def test_an_update_that_is_cancelled_stores_nothing(memory: Memory) -> None:
    started = asyncio.Event()

    async def never(value: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    updating = asyncio.create_task(memory.update("key", never))
    await started.wait()
    updating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await updating
    assert not await history(memory, "key")


async def test_an_update_begins_with_the_default_where_there_is_no_value(memory: Memory) -> None:
    async def absent() -> list[Any]:
        given: list[Any] = []

        def function(value: Any) -> int:
            given.append(value)
            return 1

        await memory.update("key", function, "default")
        return given

    assert await absent() == ["default"]
    await memory.delete("key")
    assert await absent() == ["default"]
    await memory.set("key", 1, ttl=0.05)
    await eventually(lambda: _absent(memory, "key"))
    assert await absent() == ["default"]
    await memory.set("key", None)
    assert await absent() == [None]


async def test_an_update_may_change_what_it_gets_and_the_default_stays(memory: Memory) -> None:
    default: dict[str, list[str]] = {"names": []}
    absent = object()

    def add(name: str) -> Callable[[Any], Any]:
        def added(value: dict[str, list[str]]) -> dict[str, list[str]]:
            value["names"].append(name)
            return value

        return added

    await memory.update("one", add("ada"), default)
    await memory.update("two", add("bob"), default)

    assert await memory.get_many(["one", "two"]) == {"one": {"names": ["ada"]}, "two": {"names": ["bob"]}}
    assert default == {"names": []}
    assert await memory.update("three", lambda value: value is absent, absent) is True


async def test_updates_on_one_key_finish_although_others_never_stop_writing(another: Connect) -> None:
    memory, other = await another(), await another()
    stop = asyncio.Event()

    async def disturb() -> int:
        count = 0
        while not stop.is_set():
            await other.update("key", merges.append("other"))
            count += 1
        return count

    disturbing = asyncio.create_task(disturb())
    began = time.monotonic()
    for _ in range(20):
        await memory.update("key", merges.append("mine"))
    took = time.monotonic() - began
    stop.set()
    disturbed = await disturbing
    value = await memory.get("key")
    assert (value.count("mine"), value.count("other")) == (20, disturbed)
    assert took < 20, "the pauses between rounds are bounded"


async def test_merges_of_many_writers_lose_nothing(another: Connect) -> None:
    writers = [await another() for _ in range(3)]
    numbers = range(30)
    await asyncio.gather(
        *(writers[number % 3].update("highest", merges.maximum(number)) for number in numbers),
        *(writers[number % 3].update("lowest", merges.minimum(number)) for number in numbers),
        *(writers[number % 3].update("seen", merges.union([number, number // 2])) for number in numbers),
        *(writers[number % 3].update("all", merges.append(number)) for number in numbers),
    )
    memory = writers[0]
    assert (await memory.get("highest"), await memory.get("lowest")) == (29, 0)
    assert sorted(await memory.get("seen")) == sorted(await memory.get("all")) == list(numbers)


# -- increment --------------------------------------------------------------------------------------------------------


async def test_the_increments_of_fifty_writers_add_up_exactly(another: Connect) -> None:
    writers = [await another() for _ in range(5)]

    async def write(number: int) -> list[float]:
        return [await writers[number % 5].increment("count", number + 1) for _ in range(10)]

    sums = [value for values in await asyncio.gather(*map(write, range(50))) for value in values]
    total = 10 * sum(range(1, 51))
    assert await writers[0].get("count") == total
    assert len(set(sums)) == 500, "no two increments returned the same sum"
    events = await history(writers[0], "count")
    assert sorted(sums) == [event.data for event in events]


async def test_an_increment_goes_both_ways_and_takes_fractions(memory: Memory) -> None:
    assert await memory.increment("count") == 1
    assert await memory.increment("count", -3) == -2
    assert await memory.increment("count", 0.5) == -1.5
    await memory.delete("count")
    assert await memory.increment("count", 2) == 2


@pytest.mark.parametrize("held", ["1", None, True, [1]])
async def test_only_a_number_can_be_incremented(memory: Memory, held: Any) -> None:
    await memory.set("key", held)
    with pytest.raises(InvalidInputError, match="not a number"):
        await memory.increment("key")
    assert await memory.get("key") == held


@pytest.mark.parametrize("by", ["1", True, None, float("nan"), float("inf"), 2**70])
async def test_only_a_number_that_can_be_stored_is_added(memory: Memory, by: Any) -> None:
    with pytest.raises(InvalidInputError):
        await memory.increment("count", by)
    assert not await history(memory, "count")


# -- deletes ----------------------------------------------------------------------------------------------------------


async def test_of_many_deletes_of_one_value_exactly_one_finds_it(another: Connect) -> None:
    deleters = [await another() for _ in range(3)]
    for _ in range(5):
        await deleters[0].set("key", 1)
        outcomes = await asyncio.gather(*(deleters[number % 3].delete("key") for number in range(12)))
        assert sorted(outcomes) == [False] * 11 + [True]
    operations = [event.operation for event in await history(deleters[0], "key")]
    assert operations == ["set", "delete"] * 5


async def test_deleting_what_is_absent_or_expired_writes_nothing(memory: Memory) -> None:
    assert not await memory.delete("key")
    await memory.set("key", 1, ttl=0.05)
    await eventually(lambda: _absent(memory, "key"))
    assert not await memory.delete("key")
    assert len(await history(memory, "key")) == 1


async def test_a_delete_gets_through_although_others_never_stop_writing(another: Connect) -> None:
    memory, other = await another(), await another()
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await other.set("key", 1)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(write())
        await eventually(lambda: memory.exists("key"))
        found = [await memory.delete("key") for _ in range(20)]
        stop.set()
    deletes = [event for event in await history(memory, "key") if event.operation == "delete"]
    assert len(deletes) == sum(found) > 0
    assert all(event.previous_data == 1 for event in deletes)


async def _absent(memory: Memory, key: str) -> bool:
    return not await memory.exists(key)
