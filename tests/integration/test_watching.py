"""Looking back and watching: every event once, on one side of the seam or the other, with what was there before."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from agentfield import Agent, CaughtUp, Event, InvalidInputError, Memory, UnavailableError, connect
from agentfield.fabric.jetstream import api
from tests.support import NatsServer, eventually
from tests.support.events import write_many


def shape(events: list[Event]) -> list[tuple[str, Any, Any]]:
    return [(event.key, event.data, event.previous_data) for event in events]


async def consumers(memory: Memory) -> list[str]:
    fabric = await memory._fabric()
    answer = await api(fabric.connection, f"CONSUMER.NAMES.{fabric.log.stream}", {})
    return list(answer["consumers"] or [])


# -- history ----------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_history_is_what_happened_in_order_with_what_was_there_before(memory: Memory) -> None:
    await memory.set("a_1", 1)
    await memory.set("b", 1)
    await memory.set("a_1", 2)
    await memory.delete("a_1")
    await memory.set("a_2", None)
    assert shape([event async for event in memory.history("a_*")]) == [
        ("a_1", 1, None),
        ("a_1", 2, 1),
        ("a_1", None, 2),
        ("a_2", None, None),
    ]
    assert [event.operation async for event in memory.history("a_*")] == ["set", "set", "delete", "set"]
    assert [event.previous_revision async for event in memory.history("a_*")] == [None, 1, 3, None]


async def test_any_slice_of_history_is_that_slice(memory: Memory) -> None:
    revisions = [await memory.set("k" if number % 3 else "other", number) for number in range(30)]
    whole = [event async for event in memory.history("k")]
    for since in (None, 0, 1, 7, revisions[-1], revisions[-1] + 1, 10**9):
        for until in (None, 0, 1, 7, 22, 10**9):
            for limit in (None, 1, 4):
                expected = [
                    event for event in whole if (since or 0) <= event.revision <= (10**9 if until is None else until)
                ]
                sliced = [event async for event in memory.history("k", since=since, until=until, limit=limit)]
                assert sliced == expected[:limit], (since, until, limit)
                newest = [
                    event async for event in memory.history("k", since=since, until=until, limit=limit, reverse=True)
                ]
                assert newest == expected[::-1][:limit], (since, until, limit)


async def test_moments_bound_history_like_revisions(memory: Memory) -> None:
    for number in range(5):
        await memory.set("k", number)
    events = [event async for event in memory.history("k")]
    middle = events[2].timestamp
    after = middle + timedelta(microseconds=1)  # the log's times are finer than a datetime
    assert [event.data async for event in memory.history("k", since=middle)] == [2, 3, 4]
    assert [event.data async for event in memory.history("k", until=middle)] == [0, 1]
    assert [event.data async for event in memory.history("k", until=after)][:3] == [0, 1, 2]
    assert [event async for event in memory.history("k", since=datetime.now(UTC) + timedelta(days=1))] == []
    assert [event async for event in memory.history("k", until=middle - timedelta(days=1))] == []


async def test_leaving_early_leaves_nothing_on_the_server(memory: Memory) -> None:
    await memory.set_many({f"k_{number}": number for number in range(100)})
    async with aclosing(memory.history()) as events:  # type: ignore[type-var]
        await anext(aiter(events))
    async with aclosing(memory.watch(start="all")) as items:
        await anext(aiter(items))
    assert [event.data async for event in memory.history(limit=3)] == [0, 1, 2]
    await eventually(lambda: nobody_reads(memory))


async def nobody_reads(memory: Memory) -> bool:
    return await consumers(memory) == []


async def test_history_that_the_server_leaves_in_the_midst_says_so(fresh_server: NatsServer, namespace: str) -> None:
    async with connect(fresh_server.url, namespace=namespace) as memory:
        await write_many(await memory._fabric(), [f"k.{number}" for number in range(3000)])
    async with connect(fresh_server.url, namespace=namespace, timeout=1.0) as memory:
        events = aiter(memory.history())
        with pytest.raises(UnavailableError):
            await take_all(events, fresh_server)


async def take_all(events: Any, server: NatsServer) -> None:
    taken = 0
    async for _ in events:
        taken += 1
        if taken == 10:
            await server.kill()


# -- watching ---------------------------------------------------------------------------------------------------------


class Watch:
    """What a watch has given so far."""

    def __init__(self, memory: Memory, pattern: str = "*", **options: Any) -> None:
        self.events: list[Event] = []
        self.seam: tuple[int, int] | None = None
        """The revision of the marker, and how many events came before it."""
        self.task = asyncio.create_task(self._take(memory, pattern, options))

    async def _take(self, memory: Memory, pattern: str, options: dict[str, Any]) -> None:
        async for item in memory.watch(pattern, **options):
            if isinstance(item, CaughtUp):
                assert self.seam is None, "caught up twice"
                self.seam = (item.revision, len(self.events))
            else:
                self.events.append(item)

    async def caught_up(self) -> "Watch":
        await eventually(lambda: self.seam)
        return self

    def has(self, revision: int) -> bool:
        return bool(self.events) and self.events[-1].revision == revision

    async def end(self) -> list[Event]:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        return self.events


@pytest.mark.parametrize(
    ("start", "past"),
    [
        ("new", []),
        ("current", [("a", 2, 1), ("b", 1, None)]),
        ("all", [("a", 1, None), ("gone", 1, None), ("a", 2, 1), ("gone", None, 1), ("b", 1, None)]),
        (3, [("a", 2, 1), ("gone", None, 1), ("b", 1, None)]),
        (6, []),
    ],
)
async def test_a_watch_begins_where_start_says_and_goes_on(
    memory: Memory, start: Any, past: list[tuple[str, Any, Any]]
) -> None:
    await memory.set("a", 1)
    await memory.set("gone", 1)
    await memory.set("a", 2)
    await memory.delete("gone")
    await memory.set("b", 1)
    watch = await Watch(memory, start=start).caught_up()
    await memory.set("a", 3)
    await memory.set("gone", "back")
    await eventually(lambda: len(watch.events) == len(past) + 2)
    assert shape(await watch.end()) == [*past, ("a", 3, 2), ("gone", "back", None)]
    assert watch.seam == (5, len(past))


async def test_a_watch_from_a_moment_is_one_from_its_revision(memory: Memory) -> None:
    await memory.set("k", 1)
    await memory.set("k", 2)
    second = [event async for event in memory.history("k")][1]
    watch = await Watch(memory, start=second.timestamp).caught_up()
    assert shape(await watch.end()) == [("k", 2, 1)]


async def test_a_watch_from_a_time_to_come_is_refused_with_the_servers_time(memory: Memory) -> None:
    start = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(InvalidInputError, match="lies in the future: for the server, it is 20"):
        await anext(memory.watch("k", start=start))


@pytest.mark.parametrize("delivery", ["agent", "instance"])
async def test_so_is_a_handler_from_a_time_to_come_when_its_agent_is_served(
    server: NatsServer, namespace: str, delivery: Any
) -> None:
    agent = Agent("a", nats_url=server.url, namespace=namespace)
    agent.memory.on_change("k", start=datetime.now(UTC) + timedelta(hours=1), delivery=delivery)(print)
    with pytest.raises(InvalidInputError, match="lies in the future: for the server, it is 20"):
        await agent.__aenter__()
    await agent.aclose()


async def test_a_watch_from_a_revision_still_to_come_knows_what_was_there_then(memory: Memory) -> None:
    await memory.set("k", 1)
    watch = await Watch(memory, start=4).caught_up()
    for number in (2, 3, 4, 5):
        await memory.set("k", number)
    await eventually(lambda: len(watch.events) == 2)
    assert shape(await watch.end()) == [("k", 4, 3), ("k", 5, 4)]


async def test_nothing_falls_between_past_and_present_while_everything_is_being_written(
    memory: Memory, server: NatsServer, namespace: str
) -> None:
    enough = asyncio.Event()
    starts: tuple[Any, ...] = ("all", "new", "current", 5)
    async with connect(server.url, namespace=namespace) as other, asyncio.TaskGroup() as tasks:

        async def count(key: str) -> None:
            number = 0
            while not enough.is_set():
                number += 1
                await other.set(key, number)

        for key in ("a", "b", "c"):
            tasks.create_task(count(key))
        await eventually(lambda: memory.exists("c"))
        watches = []
        for start in starts:
            watches.append(await Watch(memory, start=start).caught_up())
        seams = [watch.seam for watch in watches]
        await eventually(lambda: all(len(watch.events) > 300 for watch in watches), within=20)
        enough.set()
    stored = [event async for event in memory.history()]
    for watch, start in zip(watches, starts, strict=True):
        await eventually(partial(watch.has, stored[-1].revision))
        events = await watch.end()
        assert watch.seam is not None
        target, before = watch.seam
        assert all(event.revision <= target for event in events[:before])
        assert events[before:] == [event for event in stored if event.revision > target]
        if start in ("all", 5):
            first = 5 if start == 5 else 1
            assert events[:before] == [event for event in stored if first <= event.revision <= target]
    assert None not in seams


async def test_a_slow_watcher_holds_nothing_up_and_misses_nothing(memory: Memory) -> None:
    seen = []
    async with asyncio.timeout(30):
        async for item in memory.watch("k", start="new"):
            if isinstance(item, CaughtUp):
                for begin in range(0, 1500, 500):
                    await write_many(await memory._fabric(), ["k"] * 500, str(begin).encode())
                continue
            seen.append(item.revision)
            if len(seen) == 1500:
                break
    assert seen == list(range(1, 1501))
