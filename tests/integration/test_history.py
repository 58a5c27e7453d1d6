"""History in pages, backwards, by writer, and of a log that has lost its beginning."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentfield import Agent, Event, HistoryTruncatedError, Memory, connect
from agentfield.codec import Record
from agentfield.fabric.ephemeral import Ephemeral
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.log import Log
from agentfield.fabric.reading import backwards
from agentfield.fabric.reading.few import FEW
from agentfield.memory import history
from tests.support import NatsServer
from tests.support.events import subject, write_many
from tests.support.trimming import trim


async def events(memory: Memory, pattern: str = "*", **options: Any) -> list[Event]:
    return [event async for event in memory.history(pattern, **options)]


@pytest.fixture
async def busy(memory: Memory) -> Memory:
    """Memory with a past of 3,000 events of 1,500 keys, in which `rare` is seldom."""
    choose = random.Random(4)
    names = [f"k.{choose.randrange(1500)}" for _ in range(3000)]
    for place in (3, 700, 701, 2900):
        names[place] = "rare"
    await write_many(await memory._fabric(), names)
    return memory


@pytest.mark.parametrize("pattern", ["*", "k_1*", "rare", "k_7", "nothing"])
async def test_backwards_is_forwards_reversed(busy: Memory, pattern: str) -> None:
    whole = await events(busy, pattern)
    assert await events(busy, pattern, reverse=True) == whole[::-1]
    for since, until, limit in ((None, 2500, 7), (500, None, 1100), (600, 800, None), (1, 2, 1)):
        part = [event for event in whole if (since or 1) <= event.revision <= (until or 3000)]
        options = {"since": since, "until": until, "limit": limit}
        assert await events(busy, pattern, **options) == part[:limit]
        assert await events(busy, pattern, **options, reverse=True) == part[::-1][:limit]


@pytest.mark.parametrize("scopes", [0, 1, FEW, FEW + 1, 30])
async def test_a_key_of_any_number_of_scopes_comes_whole_and_of_no_foreign_one(
    server: NatsServer, namespace: str, memory: Memory, scopes: int
) -> None:
    """However many there are: those of one key are read subject by subject where they are few."""
    expected: list[tuple[str, str, Any, Any]] = []
    before: dict[tuple[str, str], Any] = {}

    async def write(kind: str, id: str, value: Any) -> None:
        if value is None:
            await memory.delete("rare", kind, id)
        else:
            await memory.set("rare", value, kind, id)
        if kind != "actor" or id == "me":
            expected.append((kind, id, value, before.get((kind, id))))
            before[kind, id] = value

    places = [("workflow" if number % 2 else "session", f"s.{number}") for number in range(scopes)]
    for number, (kind, id) in enumerate([*places, *places[::-1]]):
        await write(kind, id, number)
        await write("actor", f"foreign-{number}", number)
        await memory.set("other", number, kind, id)
    for kind, id in [("global", "global"), ("actor", "me")] if scopes else []:
        await write(kind, id, "mine")
        await write(kind, id, None)
    await write("actor", "them", "theirs")
    async with connect(server.url, namespace=namespace, actor_id="me") as mine:
        for options in ({}, {"reverse": True}):
            found = [
                (event.scope, event.scope_id, event.data, event.previous_data)
                for event in await events(mine, "rare", **options)
            ]
            assert found == (expected[::-1] if options else expected)
        revisions = [event.revision for event in await events(mine, "rare")]
        for count, first in enumerate(revisions):
            assert [event.revision for event in await events(mine, "rare", since=first, limit=2)] == revisions[count:][
                :2
            ]
            if count > 3:
                break


@pytest.mark.parametrize("reverse", [False, True])
async def test_pages_put_together_are_the_whole(busy: Memory, reverse: bool) -> None:
    whole = await events(busy, "k_1*", reverse=reverse)
    pages: list[Event] = []
    while page := await events(
        busy, "k_1*", limit=97, reverse=reverse, **_after(pages[-1].revision if pages else None, reverse)
    ):
        pages += page
    assert pages == whole


def _after(revision: int | None, reverse: bool) -> dict[str, int]:
    if revision is None:
        return {}
    return {"until": revision - 1} if reverse else {"since": revision + 1}


async def test_backwards_only_a_block_is_held_at_a_time(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = random.Random(5)
    names = [f"k.{choose.randrange(40)}" if choose.random() < 0.3 else "noise" for _ in range(1200)]
    last = await write_many(fabric, names)
    expected = [number for number, name in enumerate(names, 1) if name != "noise"]
    filters = [subject(fabric, "k.*")]
    for block, size in ((1000, 10_000), (7, 10_000), (50, 20)):
        monkeypatch.setattr(backwards, "BLOCK", block)
        monkeypatch.setattr(backwards, "_BLOCK_BYTES", size)
        found: list[int] = []
        async for records in backwards.backwards(fabric.log, filters, start=1, stop=last):
            assert 0 < len(records) <= min(block, size)
            found = [record.sequence for record in records] + found
        assert found == expected, (block, size)


async def test_the_last_event_is_not_found_by_reading_them_all(busy: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Record] = []
    original = Log.read

    async def counted(log: Log, *args: Any, **options: Any) -> Any:
        async for record in original(log, *args, **options):
            read.append(record)
            yield record

    monkeypatch.setattr(Log, "read", counted)
    (last,) = await events(busy, reverse=True, limit=1)
    assert last.revision == 3000
    assert len(read) < 200


async def test_from_the_beginning_no_event_costs_a_look_up_of_its_own(
    busy: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are more keys than are remembered while it is read."""
    whole = await events(busy)
    monkeypatch.setattr(history, "_KEYS", 600)

    async def before(log: Log, record: Record) -> Record | None:
        raise AssertionError("looked up by itself")

    monkeypatch.setattr(Log, "before", before)
    assert await events(busy) == whole


async def test_many_events_of_several_scopes_are_not_read_by_all_filters_at_once(
    busy: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would look at every key of a block for each event: 4 ms an event where there are 30,000 keys."""
    filters: list[int] = []
    create = Ephemeral.create

    async def noted(consumer: Ephemeral, start: int | None) -> dict[str, Any]:
        filters.append(len(consumer._slice.filters))
        return await create(consumer, start)

    monkeypatch.setattr(Ephemeral, "create", noted)
    assert len(await events(busy)) == 3000
    assert set(filters) == {1}


async def test_by_writer_are_those_of_an_agent_or_of_an_execution(server: NatsServer, namespace: str) -> None:
    one, other = (Agent(name, nats_url=server.url, namespace=namespace) for name in ("one", "other"))
    try:
        async with one.workflow("w"):  # one execution, whoever writes in it
            await one.memory.set("k", 1)
            await other.memory.set("k", 2)
            await one.memory.set("k", 3)
        await one.memory.set("k", 4)
        memory = one.memory
        assert [event.data for event in await events(memory, writer="one")] == [1, 3, 4]
        assert [(event.data, event.previous_data) for event in await events(memory, writer="other")] == [(2, 1)]
        assert await events(memory, writer="nobody") == []
        execution = (await events(memory, writer="one"))[0].writer.execution_id
        assert execution is not None
        assert [event.data for event in await events(memory, writer=execution)] == [1, 2, 3]
        assert await events(memory, writer="one", reverse=True, limit=2) == (await events(memory, writer="one"))[:0:-1]
        assert [event.data for event in await events(memory, writer="one", since=2, limit=1)] == [3]
    finally:
        await one.aclose()
        await other.aclose()


# -- a log that has lost its beginning --------------------------------------------------------------------------------


async def test_history_of_a_shortened_log_begins_with_what_is_left(memory: Memory) -> None:
    for number in range(1, 7):
        await memory.set("k", number)
    await trim(await memory._fabric(), 3)
    left = await events(memory, "k")
    assert [(event.revision, event.data, event.previous_data) for event in left] == [
        (3, 3, None),
        (4, 4, 3),
        (5, 5, 4),
        (6, 6, 5),
    ]
    assert await events(memory, "k", reverse=True) == left[::-1]
    assert await events(memory, "k", since=3) == left
    assert await events(memory, "k", until=2) == []
    since = left[1].timestamp
    assert await events(memory, "k", since=since) == left[1:]


@pytest.mark.parametrize("since", [0, 1, 2, datetime.now(UTC) - timedelta(hours=1), datetime(1, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("reverse", [False, True])
async def test_what_is_asked_for_and_gone_is_an_error(memory: Memory, since: Any, reverse: bool) -> None:
    for number in range(1, 7):
        await memory.set("k", number)
    await trim(await memory._fabric(), 3)
    with pytest.raises(HistoryTruncatedError) as truncated:
        await events(memory, "k", since=since, reverse=reverse)
    assert truncated.value.first_available == 3
    assert truncated.value.requested == (max(1, since) if isinstance(since, int) else 2)


async def test_what_is_lost_while_it_is_read_is_an_error_and_no_gap(memory: Memory) -> None:
    fabric = await memory._fabric()
    await write_many(fabric, [f"k.{number}" for number in range(3000)])

    async def read() -> None:
        begun = False
        async for _ in memory.history():
            if not begun:
                await trim(fabric, 2900)
            begun = True

    with pytest.raises(HistoryTruncatedError) as truncated:
        await read()
    assert (truncated.value.requested, truncated.value.first_available) == (1, 2900)
