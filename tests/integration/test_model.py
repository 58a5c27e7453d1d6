"""Whatever is written in whatever order: the log's fold, the buckets, and every way to read agree."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentfield import ConflictError, Event, InvalidInputError, Memory, connect
from agentfield.execution import new_id
from agentfield.key import key_tokens
from agentfield.memory import merges
from agentfield.memory.lifetime import Periods
from agentfield.memory.lifetimes.expiry import ExpiryWorker
from tests.support import NatsServer, eventually
from tests.support.buckets import contents

KEYS = ["a", "b", "order_1_status", "odd key.ü"]
SOON = 0.05
"""Seconds: a ttl that runs out while the rest is going on."""

keys = st.sampled_from(KEYS)
values = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.lists(st.integers(0, 3), max_size=2)
ttls = st.sampled_from([None, None, SOON, 3600.0])
few = st.dictionaries(keys, values, min_size=1, max_size=4)

Operation = tuple[Any, ...]
operations: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("set"), keys, values, ttls),
    st.tuples(st.just("set_if"), keys, values, st.sampled_from(["right", "wrong"])),
    st.tuples(st.just("create"), keys, values, ttls),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("update"), keys, values),
    st.tuples(st.just("increment"), keys, st.integers(-3, 3)),
    st.tuples(st.just("set_many"), few, ttls),
    st.tuples(st.just("transaction"), st.lists(keys, max_size=2), few, st.lists(keys, max_size=2)),
    st.tuples(st.just("clear")),
)


@pytest.fixture
async def clients(server: NatsServer, namespace: str) -> AsyncIterator[list[Memory]]:
    """Three programs, and a worker for what expires."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(connect(server.url, namespace=namespace)) for _ in range(4)]
        await stack.enter_async_context(ExpiryWorker(await found.pop()._fabric(), Periods(None, None)))
        yield found


# One test, one namespace, many examples: each has a session of its own.
several = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# -- one program, against a dictionary --------------------------------------------------------------------------------


@dataclass
class Model:
    """What a session should hold, the revision of each key that was ever written, and when what it holds expires."""

    held: dict[str, Any] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    ends: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)


@several
@given(program=st.lists(operations.filter(lambda each: SOON not in each), max_size=12))
async def test_one_program_finds_what_a_dictionary_would_hold(clients: list[Memory], program: list[Operation]) -> None:
    memory, model = clients[0].session(new_id()), Model()
    for operation in program:
        await _check(memory, model, operation)
        assert await memory.get_many(KEYS) == model.held
        await _check_ends(memory, model, operation)
    assert {entry.key: entry.value async for entry in memory.items()} == model.held
    for key in KEYS:
        assert await memory.exists(key) == (key in model.held)
        entry = await memory.entry(key)
        assert (entry.revision if entry else None) == (model.revisions[key] if key in model.held else None)


async def _check(memory: Memory, model: Model, operation: Operation) -> None:
    """Do it, compare what it returns or raises with the model, and do it to the model."""
    held, revisions = model.held, model.revisions
    match operation:
        case ("set", key, value, ttl):
            revisions[key] = await memory.set(key, value, ttl=ttl)
            held[key] = value
        case ("set_if", key, value, which):
            expected = revisions.get(key, 0) + (which == "wrong")
            if which == "right":
                revisions[key] = await memory.set(key, value, if_revision=expected)
                held[key] = value
            else:
                with pytest.raises(ConflictError) as conflict:
                    await memory.set(key, value, if_revision=expected)
                assert (conflict.value.expected, conflict.value.actual) == (expected, revisions.get(key, 0))
        case ("create", key, value, ttl):
            if key in held:
                with pytest.raises(ConflictError) as conflict:
                    await memory.create(key, value, ttl=ttl)
                assert conflict.value.actual == revisions[key]
            else:
                revisions[key] = await memory.create(key, value, ttl=ttl)
                held[key] = value
        case ("delete", key):
            assert await memory.delete(key) == (key in held)
            if key in held:
                del held[key]
                revisions[key] = await _revision(memory, key)
        case ("update", key, value):
            assert await memory.update(key, lambda old: [old, value], "none") == [held.get(key, "none"), value]
            held[key] = [held.get(key, "none"), value]
            revisions[key] = await _revision(memory, key)
        case ("increment", key, by):
            old = held.get(key, 0)
            if isinstance(old, int) and not isinstance(old, bool):
                assert await memory.increment(key, by) == old + by
                held[key] = old + by
                revisions[key] = await _revision(memory, key)
            else:
                with pytest.raises(InvalidInputError):
                    await memory.increment(key, by)
        case ("set_many", pairs, ttl):
            last = await memory.set_many(pairs, ttl=ttl)
            held.update(pairs)
            revisions.update({key: last - len(pairs) + 1 + index for index, key in enumerate(pairs)})
        case ("transaction", reads, pairs, deletes):
            async with memory.transaction() as tx:
                for key in reads:
                    assert await tx.get(key, "none") == held.get(key, "none")
                for key, value in pairs.items():
                    tx.set(key, value)
                    held[key] = value
                for key in deletes:
                    tx.delete(key)
                    held.pop(key, None)
            for key in {*pairs, *deletes}:
                revisions[key] = await _revision(memory, key)
        case ("clear",):
            assert await memory.clear() == len(held)
            for key in held:
                revisions[key] = await _revision(memory, key)
            held.clear()


async def _check_ends(memory: Memory, model: Model, operation: Operation) -> None:
    """An update leaves the end of a value as it is; every other write says anew when that is."""
    for key in KEYS:
        entry = await memory.entry(key)
        if entry is None:
            model.ends.pop(key, None)
            continue
        revision, ends = model.ends.get(key, (0, None))
        if entry.revision != revision and operation[0] not in ("update", "increment"):
            ttl = operation[-1] if operation[0] in ("set", "create", "set_many") else None
            ends = None if ttl is None else entry.timestamp + timedelta(seconds=ttl)
        assert entry.expires_at == ends
        model.ends[key] = entry.revision, ends


async def _revision(memory: Memory, key: str) -> int:
    """The revision of a key's last event, a delete included."""
    (last,) = [event async for event in memory.history(key, reverse=True, limit=1)]
    return last.revision


# -- several programs, against the log --------------------------------------------------------------------------------


@several
@given(programs=st.lists(st.lists(operations, min_size=1, max_size=10), min_size=3, max_size=3))
async def test_whatever_several_programs_write_at_once_the_log_the_bucket_and_all_reads_agree(
    clients: list[Memory], server: NatsServer, namespace: str, programs: list[list[Operation]]
) -> None:
    session = new_id()

    async def run(memory: Memory, program: list[Operation]) -> None:
        for operation in program:
            await _do(memory.session(session), operation)

    async with asyncio.TaskGroup() as tasks:
        for memory, program in zip(clients, programs, strict=True):
            tasks.create_task(run(memory, program))
    memory = clients[0].session(session)
    await eventually(lambda: _nothing_expires(memory), what="what was to expire is deleted")
    events = [event async for event in memory.history("*")]
    state: dict[str, Any] = {}
    last: dict[str, Event] = {}
    for event in events:
        before = last.get(event.key)
        ended = before is not None and before.expires_at is not None and before.expires_at <= event.timestamp
        was = None if before is None or (ended and event.reason != "expired") else before.data
        assert event.previous_data == was
        assert event.previous_revision == (before.revision if before else None)
        last[event.key] = event
        if event.operation == "set":
            state[event.key] = event.data
        else:
            assert event.key in state or event.reason is None, "a delete of our own accord ends a value"
            state.pop(event.key, None)
    assert {entry.key: entry.value async for entry in memory.items()} == state
    assert sorted([key async for key in memory.keys()]) == sorted(state)
    for client in clients:
        for mode in ("strong", "session", "linearizable"):
            assert await client.session(session).get_many(KEYS, consistency=mode) == state

        async def cache_follows(client: Memory = client) -> bool:
            return await client.session(session).get_many(KEYS, consistency="cached") == state

        await eventually(cache_follows)

    async def bucket_follows() -> bool:
        held = await contents(server.url, f"{namespace}-session")
        ours = {key: value for key, value in held.items() if key.startswith(f"{session}.")}
        return ours == {f"{session}.{key_tokens(key)}": orjson.dumps(value) for key, value in state.items()}

    await eventually(bucket_follows)


async def _do(memory: Memory, operation: Operation) -> None:
    """Do it among others who do the like: whether it succeeds is up to them."""
    try:
        match operation:
            case ("set", key, value, ttl):
                await memory.set(key, value, ttl=ttl)
            case ("set_if", key, value, which):
                entry = await memory.entry(key)
                await memory.set(key, value, if_revision=(entry.revision if entry else 0) + (which == "wrong"))
            case ("create", key, value, ttl):
                await memory.create(key, value, ttl=ttl)
            case ("delete", key):
                await memory.delete(key)
            case ("update", key, value):
                await memory.update(key, lambda old: value)
            case ("increment", key, by):
                await memory.increment(key, by)
            case ("set_many", pairs, ttl):
                await memory.set_many(pairs, ttl=ttl)
            case ("transaction", reads, pairs, deletes):
                async with memory.transaction() as tx:
                    for key in reads:
                        await tx.get(key)
                    for key, value in pairs.items():
                        tx.set(key, value)
                    for key in deletes:
                        tx.delete(key)
            case ("clear",):
                await memory.clear()
    except (ConflictError, InvalidInputError):
        return


async def _nothing_expires(memory: Memory) -> bool:
    last = {event.key: event async for event in memory.history("*")}
    return not any(event.ttl is not None and event.ttl <= SOON for event in last.values())


async def test_merges_over_the_wire_are_merges(clients: list[Memory]) -> None:
    session = new_id()
    await asyncio.gather(*(client.session(session).update("set", merges.union([1, 2, 3])) for client in clients))
    assert await clients[0].session(session).get("set") == [1, 2, 3]
