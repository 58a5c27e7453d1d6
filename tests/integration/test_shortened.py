"""A log that an operator has shortened: whoever needed what is gone is told, and nobody else is disturbed."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import nats
import pytest

from agentfield import Agent, CaughtUp, Event, HistoryTruncatedError, Memory, ResyncRequired
from agentfield.fabric.fabric import Fabric
from agentfield.testing import settled
from tests.support import NatsServer, eventually
from tests.support.events import shorten, write_many


def names(count: int) -> list[str]:
    return [f"k.{number % 10}" for number in range(count)]


@pytest.fixture
def agent(server: NatsServer, namespace: str) -> Agent:
    """An agent on the shared server, not yet served."""
    return Agent("tester", nats_url=server.url, namespace=namespace)


@asynccontextmanager
async def letters(server: NatsServer, namespace: str) -> AsyncIterator[Any]:
    """A function that reads the dead letters as stock NATS shows them."""
    client = await nats.connect(server.url)
    stream = client.jetstream()
    name = f"{namespace.upper()}_DEADLETTERS"

    async def read() -> list[dict[str, Any]]:
        last = (await stream.stream_info(name)).state.last_seq
        found = [await stream.get_msg(name, sequence) for sequence in range(1, last + 1)]
        return [{"subject": each.subject, **json.loads(each.data or b"")} for each in found]

    try:
        yield read
    finally:
        await client.close()


# -- watching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["all", "revision", "moment"])
async def test_a_watch_that_begins_before_the_log_does_is_told(memory: Memory, fabric: Fabric, start: str) -> None:
    before = datetime.now(UTC)
    await write_many(fabric, names(100))
    assert await shorten(fabric, keep=20) == 81
    begin: Any = {"revision": 42, "moment": before}.get(start, start)
    with pytest.raises(ResyncRequired, match="start=81") as caught:
        await anext(memory.watch("k_*", start=begin))
    assert isinstance(caught.value, HistoryTruncatedError)
    assert caught.value.requested == {"all": 1, "revision": 42, "moment": 80}[start]
    assert caught.value.first_available == 81
    async with aclosing(memory.watch("k_*", start=81)) as items:
        assert [item.revision async for item in first(items, 20) if isinstance(item, Event)] == list(range(81, 101))


async def first(items: Any, count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(items)


async def take(items: AsyncIterator[Event | CaughtUp], into: list[int]) -> None:
    async with asyncio.timeout(20):
        async for item in items:
            assert isinstance(item, Event)
            into.append(item.revision)


@pytest.mark.parametrize("start", ["all", "current"])
async def test_a_slow_watch_is_told_in_the_place_of_what_is_gone_and_not_a_moment_later(
    memory: Memory, fabric: Fabric, start: Literal["all", "current"]
) -> None:
    await write_many(fabric, names(10))
    got: list[int] = []
    async with aclosing(memory.watch("k_*", start=start)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                break
            got.append(item.revision)
        await write_many(fabric, names(3000))
        got.append((await anext(items)).revision)
        begins = await shorten(fabric, keep=100)
        with pytest.raises(ResyncRequired) as caught:
            await take(items, got)
    assert got == list(range(1, got[-1] + 1)), "a gap was passed over"
    assert 11 <= got[-1] < begins
    assert (caught.value.requested, caught.value.first_available) == (got[-1] + 1, begins)


async def test_a_watch_that_rested_while_its_events_came_and_went_is_told(memory: Memory, fabric: Fabric) -> None:
    async with aclosing(memory.watch("k_*", start="new")) as items:
        await anext(items)
        await write_many(fabric, names(1))
        assert (await anext(items)).revision == 1
        # The open pull brings up to 500; of what comes after it nothing is asked for while nobody takes.
        await write_many(fabric, names(2000))
        begins = await shorten(fabric, keep=5)
        got: list[int] = []
        with pytest.raises(ResyncRequired):
            await take(items, got)
    assert got == list(range(2, 2 + len(got)))
    assert 1 + len(got) < begins


async def test_a_watch_that_has_seen_it_all_is_not_disturbed(memory: Memory, fabric: Fabric) -> None:
    async with aclosing(memory.watch("k_*", start="new")) as items:
        await anext(items)
        for round in range(3):
            last = await write_many(fabric, names(50))
            assert [item.revision async for item in first(items, 50)] == list(range(last - 49, last + 1))
            await shorten(fabric, keep=1 + round)


# -- handlers ---------------------------------------------------------------------------------------------------------


async def test_a_handler_whose_events_went_while_nobody_ran_reports_it_once_and_goes_on(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []

    def version() -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k_*")
        async def react(event: Event) -> None:
            heard.append(event.revision)

        return agent

    async with version() as agent:
        await write_many(fabric, names(10))
        await settled(agent)
    await write_many(fabric, names(100))
    assert await shorten(fabric, keep=20) == 91
    for _ in range(2):
        async with version() as agent:
            await memory.set("k_1", 1)
            await settled(agent)
    assert heard == [*range(1, 11), *range(91, 113)]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the last of them revision 90" in errors[0]
    async with letters(server, namespace) as read:
        (letter,) = await read()
    assert letter["subject"] == f"{namespace}.deadletters.tester.react"
    assert letter["kind"] == "gap"
    assert letter["after"] in (0, 10)  # the server may have moved the consumer's floor
    assert letter["first_available"] == 91
    assert letter["error"]["type"] == "ResyncRequired"


@pytest.mark.parametrize("delivery", ["agent", "instance"])
async def test_a_handler_that_is_behind_reports_what_went_and_goes_on(
    agent: Agent, namespace: str, server: NatsServer, fabric: Fabric, delivery: Literal["agent", "instance"]
) -> None:
    heard: list[int] = []
    go = asyncio.Event()

    @agent.memory.on_change("k_*", start="all", delivery=delivery)
    async def react(event: Event) -> None:
        await go.wait()
        heard.append(event.revision)

    await write_many(fabric, names(5000))
    async with agent:
        progress = agent.handlers["react"]._consumer._progress  # type: ignore[attr-defined]
        await eventually(lambda: progress.is_full, within=15)
        begins = await shorten(fabric, keep=100)
        go.set()
        await eventually(lambda: heard[-1:] == [5000], within=15)
        async with letters(server, namespace) as read:

            async def gaps() -> list[tuple[int, int]] | None:
                found = [(letter["after"], letter["first_available"]) for letter in await read()]
                return found if found and found[-1][1] == begins else None

            # The server takes them out one after another: whoever looks meanwhile hears of the gap in parts.
            found = await eventually(gaps)
    starts, stops = [1, *(start for _, start in found)], [*(after for after, _ in found), 5000]
    assert heard == [each for start, stop in zip(starts, stops, strict=True) for each in range(start, stop + 1)]


@pytest.mark.parametrize("delivery", ["agent", "instance"])
async def test_a_handler_that_has_handled_it_all_reports_nothing(
    agent: Agent,
    namespace: str,
    server: NatsServer,
    fabric: Fabric,
    delivery: Literal["agent", "instance"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k_*", delivery=delivery)
    async def react(event: Event) -> None:
        heard.append(event.revision)

    async with agent:
        for round in range(3):
            await write_many(fabric, names(100))
            await settled(agent)
            await shorten(fabric, keep=3 + round)
        await write_many(fabric, names(2000))
        await settled(agent)
    assert heard == list(range(1, 2301))
    async with letters(server, namespace) as read:
        assert await read() == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("start", ["all", "new", "current"])
async def test_a_new_handler_is_told_only_if_it_wanted_what_is_gone(
    agent: Agent,
    namespace: str,
    server: NatsServer,
    memory: Memory,
    fabric: Fabric,
    start: Literal["all", "new", "current"],
) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k_*", start=start)
    async def react(event: Event) -> None:
        heard.append(event.revision)

    await write_many(fabric, names(100))
    await shorten(fabric, keep=20)
    async with agent:
        await memory.set("k_1", 1)
        await settled(agent)
        async with letters(server, namespace) as read:
            found = await eventually(read) if start == "all" else await read()
    assert heard == list({"all": range(81, 102), "new": [101], "current": range(91, 102)}[start])
    assert len(found) == (start == "all")


async def test_what_was_gone_before_a_handler_was_first_served_is_not_missed_by_a_later_instance(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric
) -> None:
    heard: list[int] = []

    def version(*, stuck: bool) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k_*", start="current")
        async def react(event: Event) -> None:
            if stuck:
                await asyncio.Event().wait()
            heard.append(event.revision)

        return agent

    await write_many(fabric, names(100))
    await shorten(fabric, keep=20)
    first = version(stuck=True)
    async with first:
        await eventually(lambda: first.handlers["react"]._consumer.is_begun(91))
        await first.aclose(grace=0)
    async with version(stuck=False) as second:
        await settled(second)
        async with letters(server, namespace) as read:
            assert await read() == []
    assert heard == list(range(91, 101))
