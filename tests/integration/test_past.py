"""Memory as it was: at any time, age and revision what the log folds to, and nothing that could write."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from agentfield import Event, HistoryTruncatedError, InvalidInputError, Memory, Past, UnavailableError, connect
from agentfield import execution as executions
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reading.asof import as_of, last_as_of
from agentfield.memory.lifetime import Periods
from agentfield.memory.lifetimes.expiry import ExpiryWorker
from tests.support import NatsServer, eventually
from tests.support.events import subject, write_many
from tests.support.trimming import trim

MICROSECOND = timedelta(microseconds=1)


async def held(past: Past | Memory, pattern: str = "*", *scope: str) -> dict[str, Any]:
    return {entry.key: entry.value async for entry in past.items(pattern, *scope)}


# -- what the log folds to --------------------------------------------------------------------------------------------

SCOPES = (("workflow", "w"), ("session", "s"), ("actor", "a"), ("global", "global"))
KEYS = [f"key_{number}" for number in range(25)]


class Log(NamedTuple):
    """A random log, and all that happened in it."""

    memory: Memory
    events: list[Event]

    def fold(self, scope: tuple[str, str], events: list[Event], at: datetime) -> dict[str, Any]:
        """What a scope holds at a time, after these events."""
        state: dict[str, Event] = {}
        for event in events:
            if (event.scope, event.scope_id) == scope:
                state[event.key] = event
        return {
            key: event.data
            for key, event in state.items()
            if event.operation == "set" and (event.expires_at is None or event.expires_at > at)
        }


async def write_at_random(memory: Memory) -> None:
    """Sets, deletes, clears and expiries in four scopes; at first, nobody says that something has expired."""
    choose = random.Random(7)
    views = [memory.workflow("w"), memory.session("s"), memory.actor(), memory.global_scope]
    worker = ExpiryWorker(await memory._fabric(), Periods(None, None))
    for number in range(350):
        if number == 200:
            await worker.__aenter__()
        view, some = choose.choice(views), choose.sample(KEYS, choose.randrange(1, 6))
        match choose.randrange(12):
            case 0 | 1 | 2:
                await view.delete(some[0])
            case 3 if number % 5 == 0:
                await view.clear()
            case 4 | 5:
                await view.set(some[0], number, ttl=choose.choice([0.01, 0.05, 0.3, 3600.0]))
            case 6:
                await view.set_many(dict.fromkeys(some, number), ttl=0.1)
            case _:
                await view.set_many(dict.fromkeys(some, number))

    async def was_said() -> bool:
        return any([event.reason == "expired" async for event in memory.history()])

    await memory.set("key_0", "brief", ttl=0.01)
    await eventually(was_said, what="an expiry is said")
    await worker.__aexit__(None, None, None)


@pytest.fixture
async def log(server: NatsServer, namespace: str) -> AsyncIterator[Log]:
    async with connect(server.url, namespace=namespace, actor_id="a") as memory:
        await write_at_random(memory)
        events = [event async for event in memory.history()]
        assert [event.revision for event in events] == list(range(1, len(events) + 1))
        assert {event.reason for event in events} == {None, "expired", "cleared"}
        yield Log(memory, events)


async def test_at_a_thousand_times_and_revisions_it_is_what_the_log_folds_to(log: Log) -> None:
    choose = random.Random(8)
    begun, ended = log.events[0].timestamp, log.events[-1].timestamp
    revisions = [0, len(log.events), *(choose.randrange(1, len(log.events)) for _ in range(400))]
    times = [begun - MICROSECOND, begun, ended, *(begun + (ended - begun) * choose.random() for _ in range(300))]
    times += [choose.choice(log.events).timestamp + MICROSECOND * choose.randrange(-1, 2) for _ in range(300)]
    some = asyncio.Semaphore(40)

    async def check(point: int | datetime) -> None:
        if isinstance(point, datetime):
            before, at = [event for event in log.events if event.timestamp <= point], point
        else:
            before = log.events[:point]
            at = before[-1].timestamp if before else begun
        scope, key = choose.choice(SCOPES), choose.choice(KEYS)
        expected = log.fold(scope, before, at)
        async with some:
            past = log.memory.as_of(point)
            assert await held(past, "*", *scope) == expected, (point, scope)
            assert await past.get(key, "none", *scope) == expected.get(key, "none"), (point, scope, key)
            assert (await past.moment()).revision == len(before)

    async with asyncio.TaskGroup() as tasks:
        points: list[int | datetime] = [*revisions, *times]
        for point in points:
            tasks.create_task(check(point))


async def test_without_a_scope_the_first_that_had_the_key_answers(log: Log) -> None:
    choose = random.Random(9)
    running = executions.root(None, "a", workflow_id="w", session_id="s")
    token = executions.current.set(running)
    try:
        for revision in choose.sample(range(1, len(log.events)), 25):
            expected: dict[str, Any] = {}
            for scope in reversed(SCOPES):
                expected |= log.fold(scope, log.events[:revision], log.events[revision - 1].timestamp)
            past = log.memory.as_of(revision)
            assert await held(past) == expected
            assert await past.get_many(KEYS) == {key: expected[key] for key in KEYS if key in expected}
            assert sorted([key async for key in past.keys("key_1*")]) == sorted(
                key for key in expected if key.startswith("key_1") and key != "key_1"
            )
            for key in KEYS[:3]:
                assert await past.exists(key) == (key in expected)
    finally:
        executions.current.reset(token)


# -- its edges --------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_a_revision_is_part_of_its_own_past_and_the_next_is_not(memory: Memory) -> None:
    first = await memory.set("k", 1)
    second = await memory.set("k", 2)
    await memory.delete("k")
    assert [await memory.as_of(revision).get("k") for revision in (0, first, second, second + 1)] == [None, 1, 2, None]


async def test_a_time_takes_in_the_event_that_says_it(memory: Memory) -> None:
    for number in range(5):
        await memory.set("k", number)
    async for event in memory.history("k"):
        assert await memory.as_of(event.timestamp).get("k") == event.data
        before = await memory.as_of(event.timestamp - MICROSECOND).get("k")
        assert before == event.previous_data


async def test_what_had_run_out_by_then_is_absent_though_nobody_had_said_so(memory: Memory) -> None:
    await memory.set("k", 1, ttl=0.05)
    entry = await memory.entry("k")
    assert entry is not None
    assert entry.expires_at is not None
    await asyncio.sleep(0.1)
    later = await memory.set("other", 1)
    assert await memory.as_of(entry.revision).get("k") == 1
    assert await memory.as_of(later).get("k") is None
    assert await memory.as_of(entry.expires_at - MICROSECOND).get("k") == 1
    assert await memory.as_of(entry.expires_at).get("k") is None


async def surely_past(memory: Memory, moment: datetime | None) -> None:
    """Wait until the server stores events after that moment: what time it has by now, is only known so well."""

    async def is_past() -> bool:
        await memory.set("clock", 1)
        entry = await memory.entry("clock")
        return entry is not None and moment is not None and entry.timestamp > moment

    await eventually(is_past, what="the server's time is past it")


async def test_an_age_counts_back_from_the_call_and_stays(memory: Memory) -> None:
    await memory.set("k", 1)
    now = memory.as_of(timedelta(0))
    assert await now.get("k") == 1
    later = memory.as_of(timedelta(0))
    await surely_past(memory, (await memory.as_of(timedelta(0)).moment()).timestamp)
    await memory.set("k", 2)
    assert await now.get("k") == 1
    assert await later.get("k") == 1, "the age was counted from the first read"
    assert await memory.as_of(timedelta(0)).get("k") == 2
    assert await memory.as_of(timedelta(days=1)).get("k") is None
    assert await memory.as_of(timedelta(days=500_000)).get("k") is None


async def test_the_future_is_refused_and_the_present_is_not(memory: Memory) -> None:
    last = await memory.set("k", 1)
    assert await memory.as_of(datetime.now(UTC)).get("k") == 1
    for point in (last + 1, datetime.now(UTC) + timedelta(seconds=30), datetime(9999, 1, 1, tzinfo=UTC)):
        with pytest.raises(InvalidInputError, match="future"):
            await memory.as_of(point).get("k")
    assert await memory.as_of(datetime(1, 1, 1, tzinfo=UTC)).get("k") is None


async def test_a_moment_says_what_it_is(memory: Memory) -> None:
    revision = await memory.set("k", 1)
    entry = await memory.entry("k")
    assert entry is not None
    moment = await memory.as_of(revision).moment()
    assert (moment.revision, moment.timestamp) == (revision, entry.timestamp)
    assert (await memory.as_of(0).moment()).model_dump() == {"revision": 0, "timestamp": None}
    at = entry.timestamp - timedelta(hours=1)
    assert (await memory.as_of(at).moment()).model_dump() == {"revision": 0, "timestamp": at}


# -- the same reads ---------------------------------------------------------------------------------------------------


class Order(BaseModel):
    id: int
    status: str = "new"


async def test_it_reads_as_memory_does_and_has_nothing_that_writes(memory: Memory) -> None:
    memory.schema("order_*", Order)
    large = {"text": "x" * 300_000}
    revision = await memory.set_many({"order_1": Order(id=1), "plain": [1], "large": large})
    await memory.set_many({"order_1": Order(id=1, status="paid"), "plain": [2], "large": 0})
    past = memory.as_of(revision)
    assert await past.get("order_1") == Order(id=1)
    assert await past.get("plain", as_type=tuple[int]) == (1,)
    assert await past.get("large") == large
    entry = await past.entry("order_1")
    assert entry is not None
    assert (entry.value, entry.schema_name, entry.scope) == (Order(id=1), "Order", "global")
    assert await past.entry("nothing") is None
    assert await past.get_many([]) == {}
    writing = {"set", "delete", "update", "increment", "create", "set_many", "clear", "transaction", "lock", "revert"}
    assert not writing & set(dir(past))


async def test_views_are_of_the_same_moment_and_of_their_scope(memory: Memory) -> None:
    session = memory.session("s")
    revision = await session.set("k", 1)
    await session.set("k", 2)
    assert await session.as_of(revision).get("k") == 1
    past = memory.as_of(revision)
    assert await past.get("k") is None
    assert await past.session("s").get("k") == 1
    assert await past.session("s").exists("k")
    assert not await past.workflow("s").exists("k")
    assert not await past.actor("s").exists("k")
    assert not await past.global_scope.exists("k")
    with pytest.raises(InvalidInputError, match="bound to the session scope"):
        past.session("s").global_scope  # noqa: B018
    assert repr(past.session("s")) == "<Past of no agent bound to session:s>"


# -- any number of keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 300, 1025, 1600])
async def test_any_number_of_keys_is_found_as_it_was(fabric: Fabric, count: int) -> None:
    choose = random.Random(count)
    names = [f"k.{number}" for number in range(count)]
    names += [f"k.{choose.randrange(2 * count)}" for _ in range(2 * count)]
    names += [f"k.{number}" for number in range(max(0, count - 10), count + 10)]  # each of these has changed since
    names += [f"noise.{number}" for number in range(300)]
    last = await write_many(fabric, names)
    filters = [subject(fabric, "k.>")]
    keys = [name for name in names if name[0] == "k"]
    some = choose.sample(sorted(set(keys)), min(count, 300))
    for sequence in (0, 1, count - 1, count + 7, 2 * count, last):
        expected = {subject(fabric, name): number for number, name in enumerate(names[:sequence], 1) if name[0] == "k"}
        found = [record async for record in as_of(fabric.log, filters, sequence)]
        assert len(found) == len(expected)
        assert {record.subject: record.sequence for record in found} == expected
        asked = [subject(fabric, name) for name in {*some, keys[min(sequence, len(keys)) - 1]}]
        literal = await last_as_of(fabric.log, asked, sequence)
        assert [record and record.sequence for record in literal] == [expected.get(name) for name in asked]


async def test_keys_beside_one_that_is_written_all_the_time_are_found_as_they_were(fabric: Fabric) -> None:
    """How far back to look is guessed by how the keys were written since, and that guess costs too much here."""
    keys, hot = [f"k.{number}" for number in range(400)], ["k.hot"] * 3000
    names = [*keys, *hot, *keys, *hot]
    await write_many(fabric, names)
    await fabric.log.state()
    then = len(keys) + len(hot)
    expected = {subject(fabric, name): number for number, name in enumerate(names[:then], 1)}
    found = [record async for record in as_of(fabric.log, [subject(fabric, "k.>")], then)]
    assert {record.subject: record.sequence for record in found} == expected


async def test_an_outage_is_an_error_and_not_absence(fresh_server: NatsServer, namespace: str) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=0.5) as memory:
        await memory.set("k", 1)
        past = memory.as_of(1)
        assert await past.get("k") == 1
        await fresh_server.kill()
        with pytest.raises(UnavailableError):
            await past.get("k")
        with pytest.raises(UnavailableError):
            await held(past)


# -- a log that has lost its beginning --------------------------------------------------------------------------------


async def test_what_a_shortened_log_cannot_prove_is_an_error(memory: Memory) -> None:
    await memory.set_many({"old": 1, "both": 1})
    await memory.set("both", 2)
    await memory.set("gone", 1)
    await memory.delete("gone")
    last = await memory.set("new", 1)
    await trim(await memory._fabric(), 3)
    past = memory.as_of(last)
    assert await past.get("both") == 2
    assert await past.get("gone", "none") == "none", "its delete is left"
    assert await past.get_many(["both", "gone"]) == {"both": 2}
    for question in (past.get("old"), past.exists("never"), past.get_many(["both", "old"]), held(past)):
        with pytest.raises(HistoryTruncatedError) as truncated:
            await question
        assert (truncated.value.requested, truncated.value.first_available) == (1, 3)
    with pytest.raises(HistoryTruncatedError):
        await anext(past.items())  # and not only after what there is
    with pytest.raises(HistoryTruncatedError) as truncated:
        await memory.as_of(2).get("both")
    assert (truncated.value.requested, truncated.value.first_available) == (2, 3)
    with pytest.raises(HistoryTruncatedError):
        await memory.as_of(timedelta(hours=1)).get("both")
    assert await memory.as_of(0).get("both") is None, "before everything there was nothing"


async def test_a_scope_that_may_have_answered_first_leaves_the_answer_open(memory: Memory) -> None:
    await memory.set("filler", 1)
    last = await memory.set("k", "global")
    await trim(await memory._fabric(), 2)
    past = memory.as_of(last)
    assert await past.get("k", None, "global") == "global"
    token = executions.current.set(executions.root(None, None, workflow_id="w"))
    try:
        with pytest.raises(HistoryTruncatedError):
            await past.get("k")
    finally:
        executions.current.reset(token)
