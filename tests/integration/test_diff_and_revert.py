"""What has changed between two points of the past, and going back to one."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from agentfield import (
    Change,
    ConflictError,
    Diff,
    Event,
    HistoryTruncatedError,
    InvalidInputError,
    Memory,
    Reverted,
    connect,
)
from agentfield.memory.writing import store_together
from tests.support import NatsServer
from tests.support.trimming import trim


async def held(memory: Memory, pattern: str = "*", **scope: Any) -> dict[str, Any]:
    return {entry.key: entry.value async for entry in memory.items(pattern, **scope)}


async def written_since(memory: Memory, revision: int) -> list[Event]:
    return [event async for event in memory.history(since=revision + 1)]


def shape(changes: tuple[Change, ...]) -> list[tuple[str, Any, Any]]:
    return [
        (change.key, change.before and change.before.value, change.after and change.after.value) for change in changes
    ]


# -- diff -------------------------------------------------------------------------------------------------------------


async def test_a_diff_says_what_came_what_went_and_what_changed(memory: Memory) -> None:
    await memory.set_many({"stays": {"a": 1, "b": 2}, "goes": 1, "changes": [1]})
    before = await memory.set("expires", 1, ttl=0.05)
    await asyncio.sleep(0.1)
    await memory.delete("goes")
    await memory.set("changes", [1, 2])
    await memory.set("stays", {"b": 2, "a": 1})
    await memory.set("comes", None)
    await memory.set("between", 1)
    await memory.delete("between")
    diff = await memory.diff("*", before)
    assert shape(diff.added) == [("comes", None, None)]
    assert shape(diff.removed) == [("expires", 1, None), ("goes", 1, None)]
    assert shape(diff.changed) == [("changes", [1], [1, 2])]
    (change,) = diff.changed
    assert change.before is not None
    assert change.after is not None
    assert change.before.revision < before < change.after.revision
    assert (diff.before.revision, diff.after.revision) == (before, change.after.revision + 4)
    assert (len(diff), bool(diff)) == (4, True)
    assert tuple(diff) == diff.changes
    assert [each.key for each in diff.changes] == ["changes", "comes", "expires", "goes"]
    backwards = await memory.diff("*", diff.after.revision, before)
    assert shape(backwards.added) == [("expires", None, 1), ("goes", None, 1)]
    assert not await memory.diff("stays", before)
    assert Diff.model_validate(orjson.loads(orjson.dumps(diff.model_dump(mode="json")))) == diff


async def test_a_diff_is_of_the_scopes_that_history_covers(memory: Memory) -> None:
    await memory.session("s").set("k", 1)
    await memory.workflow("w").set("k", 1)
    await memory.set("k", 1)
    assert [(each.scope, each.scope_id) for each in (await memory.diff("k", 0)).changes] == [
        ("workflow", "w"),
        ("session", "s"),
        ("global", "global"),
    ]
    assert [each.scope for each in (await memory.diff("*", 0, scope="session")).added] == ["session"]
    assert [each.scope for each in (await memory.workflow("w").diff("*", 0)).added] == ["workflow"]


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), ("1", 1), (None, 0), ([], {}), ("a", "A")])
async def test_values_that_python_may_call_equal_differ_if_their_json_does(memory: Memory, old: Any, new: Any) -> None:
    revision = await memory.set("k", old)
    await memory.set("k", new)
    assert shape((await memory.diff("k", revision)).changed) == [("k", old, new)]


class Order(BaseModel):
    id: int
    status: str = "new"


async def test_values_are_compared_and_given_as_their_schema_has_them(memory: Memory) -> None:
    revision = await memory.set_many({"order_1": {"id": 1}, "order_2": {"id": 2}, "large": "x" * 300_000})
    await memory.set("large", 0)
    memory.schema("order_*", Order)
    await memory.set("order_1", Order(id=1))
    await memory.set("order_2", Order(id=2, status="paid"))
    await memory.set("large", "x" * 300_000)
    diff = await memory.diff("*", revision)
    assert shape(diff.changes) == [("order_2", Order(id=2), Order(id=2, status="paid"))]


async def test_a_diff_of_what_the_log_has_lost_is_an_error(memory: Memory) -> None:
    for number in range(5):
        await memory.set("k", number)
    await trim(await memory._fabric(), 3)
    with pytest.raises(HistoryTruncatedError):
        await memory.diff("k", 2)
    with pytest.raises(HistoryTruncatedError):
        await memory.diff("*", 4)


# -- revert -----------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_a_scope_becomes_what_it_was_by_new_events(memory: Memory) -> None:
    cart = memory.session("s")
    then = await cart.set_many({"stays": 1, "changes": {"n": 1}, "goes": "back", "rewritten": [1]})
    await cart.set("changes", {"n": 2})
    await cart.delete("goes")
    await cart.set("comes", 1)
    await cart.set("rewritten", [1])
    last = await memory.set("elsewhere", 1)
    trial = await cart.revert("*", then, dry_run=True)
    assert await written_since(memory, last) == []
    done = await cart.revert("*", then)
    assert trial.changes.changes == done.changes.changes
    assert (trial.revision, done.revision) == (None, last + 3)
    assert shape(done.changes.changes) == [("changes", {"n": 2}, {"n": 1}), ("comes", 1, None), ("goes", None, "back")]
    assert await held(cart) == {"stays": 1, "changes": {"n": 1}, "goes": "back", "rewritten": [1]}
    events = await written_since(memory, last)
    assert sorted((event.key, event.operation) for event in events) == [
        ("changes", "set"),
        ("comes", "delete"),
        ("goes", "set"),
    ]
    again = await cart.revert("*", then)
    assert (bool(again), again.revision) == (False, None)
    assert await written_since(memory, done.revision or 0) == []
    assert Reverted.model_validate_json(done.model_dump_json()) == done


async def test_one_key_is_reverted_where_a_write_would_go(memory: Memory) -> None:
    then = await memory.set("k", 1)
    await memory.set("k", 2)
    await memory.set("k_2", 2)
    assert await memory.revert("k", then)
    assert await held(memory) == {"k": 1, "k_2": 2}
    assert await memory.revert("k", 0)
    assert not await memory.exists("k")
    assert not await memory.revert("k", timedelta(0))


async def test_a_pattern_without_a_scope_is_refused(memory: Memory) -> None:
    with pytest.raises(InvalidInputError, match="say which"):
        await memory.revert("*", 0)
    with pytest.raises(InvalidInputError, match="future"):
        await memory.revert("k", 100)
    assert not await memory.revert("*", 0, scope="global")


async def test_a_value_comes_back_with_the_time_it_had_left_and_not_after_it(memory: Memory) -> None:
    then = await memory.set_many({"long": 1, "plain": 1}, ttl=3600)
    then = await memory.set("short", 1, ttl=0.1)
    was = await memory.entry("long")
    await memory.set_many({"long": 1, "plain": 2, "short": 2})
    await asyncio.sleep(0.15)
    done = await memory.revert("*", then, scope="global")
    assert shape(done.changes.changes) == [("long", 1, 1), ("plain", 2, 1), ("short", 2, None)]
    now = await memory.entry("long")
    assert was is not None
    assert was.expires_at is not None
    assert now is not None
    assert now.expires_at is not None
    assert abs(now.expires_at - was.expires_at) < timedelta(seconds=1)
    assert not await memory.revert("*", then, scope="global"), "it ends when it would have ended"


async def test_what_comes_back_is_what_was_written_schema_and_size_included(memory: Memory) -> None:
    memory.schema("order_*", Order)
    large = {"text": "x" * 300_000}
    then = await memory.set_many({"order_1": Order(id=1), "large": large, "odd key.ü": 1})
    assert await memory.clear("global") == 3
    assert await memory.revert("*", then, scope="global")
    entry = await memory.entry("order_1")
    assert entry is not None
    assert (entry.value, entry.schema_name, entry.schema_version) == (Order(id=1), "Order", 1)
    assert await memory.get("large") == large
    assert await memory.get("odd key.ü") == 1


async def test_more_than_a_batch_is_reverted_in_several(memory: Memory) -> None:
    scope = memory.session("s")
    then = 0
    for begin in range(0, 2100, 700):
        then = await scope.set_many({f"k_{number}": number for number in range(begin, begin + 700)})
    await scope.clear()
    done = await scope.revert("*", then)
    assert len(done.changes.added) == 2100
    assert await held(scope) == {f"k_{number}": number for number in range(2100)}


async def test_a_write_in_between_is_seen_and_decided_about_anew(
    memory: Memory, server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = await memory.set_many({"a": 1, "b": 1, "c": 1})
    await memory.set_many({"a": 2, "b": 2, "c": 2})
    writes: list[tuple[str, Any]] = [("a", 1), ("b", 3)]

    async def interrupted(*args: Any, **options: Any) -> int:
        if writes:
            await memory.set(*writes.pop(0))
        return await store_together(*args, **options)

    monkeypatch.setattr("agentfield.memory.time_travel.revert.store_together", interrupted)
    done = await memory.revert("*", then, scope="global")
    assert await held(memory) == {"a": 1, "b": 1, "c": 1}
    assert shape(done.changes.changes) == [("b", 3, 1), ("c", 2, 1)], "somebody else has reverted a"


async def test_keys_that_are_written_without_pause_are_a_conflict(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = await memory.set_many({"a": 1, "b": 1})
    await memory.set_many({"a": 2, "b": 2})
    numbers = iter(range(3, 1000))

    async def interrupted(*args: Any, **options: Any) -> int:
        await memory.set("b", next(numbers))
        return await store_together(*args, **options)

    monkeypatch.setattr("agentfield.memory.time_travel.revert.store_together", interrupted)
    monkeypatch.setattr("agentfield.memory.time_travel.revert.backoff", lambda attempt: 0.0)
    with pytest.raises(ConflictError) as conflict:
        await memory.revert("*", then, scope="global")
    assert conflict.value.key == "b"
    assert conflict.value.actual == (conflict.value.expected or 0) + 1
    assert await memory.get("a") == 2


async def test_a_revert_of_many_keys_comes_to_its_end_where_some_are_always_being_written(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory.set_many({f"a_{number}": number for number in range(600)})
    then = await memory.set_many({f"b_{number}": number for number in range(600)})
    for name in "ab":
        await memory.set_many({f"{name}_{number}": -1 for number in range(600)})

    async def interrupted(fabric: Any, lifetimes: Any, writes: Any, *others: Any) -> int:
        if len(writes) > 200:
            await memory.set(fabric.subjects.parse(writes[-1].subject)[1], "meanwhile")
        return await store_together(fabric, lifetimes, writes, *others)

    monkeypatch.setattr("agentfield.memory.time_travel.revert.store_together", interrupted)
    monkeypatch.setattr("agentfield.memory.time_travel.revert.backoff", lambda attempt: 0.0)
    assert len((await memory.revert("*", then, scope="global")).changes) == 1200
    assert not await memory.diff("*", then, scope="global")


async def test_several_that_revert_at_once_write_it_once(memory: Memory, server: NatsServer, namespace: str) -> None:
    then = await memory.set_many({f"k_{number}": 1 for number in range(50)})
    last = await memory.set_many({f"k_{number}": 2 for number in range(50)})
    async with connect(server.url, namespace=namespace) as other:
        outcomes = await asyncio.gather(*(each.revert("*", then, scope="global") for each in (memory, other) * 3))
    assert sum(len(outcome.changes) for outcome in outcomes) == 50
    assert len(await written_since(memory, last)) == 50


async def test_whatever_was_written_a_revert_gives_the_state_of_then(memory: Memory) -> None:
    choose = random.Random(3)
    scope = memory.session("s")
    points = [0]
    for number in range(60):
        some = choose.sample([f"k_{each}" for each in range(12)], choose.randrange(1, 5))
        match choose.randrange(5):
            case 0:
                await scope.delete(some[0])
            case 1 if number % 20 == 0:
                await scope.clear()
            case 2:
                await scope.set(some[0], number, ttl=3600)
            case _:
                await scope.set_many(dict.fromkeys(some, number % 3))
        points.append((await scope.as_of(timedelta(0)).moment()).revision)
    for point in choose.sample(points, 15):
        expected = {entry.key: entry.value async for entry in scope.as_of(point).items()}
        diff = await scope.diff("*", (await memory.as_of(timedelta(0)).moment()).revision, point)
        done = await scope.revert("*", point)
        assert await held(scope) == expected
        assert {change.key for change in diff.changes} <= {change.key for change in done.changes.changes}
        assert not await scope.revert("*", point)


async def test_what_the_log_cannot_prove_is_not_reverted_to(memory: Memory) -> None:
    await memory.set("old", 1)
    await memory.set("k", 1)
    then = await memory.set("k", 2)
    last = await memory.set("k", 3)
    await trim(await memory._fabric(), 3)
    with pytest.raises(HistoryTruncatedError):
        await memory.revert("*", then, scope="global")
    with pytest.raises(HistoryTruncatedError):
        await memory.revert("k", 2)
    assert await written_since(memory, last) == []
    assert await memory.revert("k", then)
    assert await memory.get("k") == 2
