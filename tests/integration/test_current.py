"""``start="current"``: the present values first, then every change; no gap and no repeat where they meet."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Literal

import pytest

from agentfield import Agent, CaughtUp, Event, Memory
from agentfield.testing import settled
from tests.support import NatsServer, eventually
from tests.support.lengths import length

Delivery = Literal["agent", "instance"]


@pytest.fixture
def agent(server: NatsServer, namespace: str) -> Agent:
    """An agent on the shared server, not yet served."""
    return Agent("tester", nats_url=server.url, namespace=namespace)


def shape(events: list[Event]) -> list[tuple[str, Any, Any]]:
    return [(event.key, event.data, event.previous_data) for event in events]


@pytest.mark.parametrize("delivery", ["agent", "instance"])
async def test_the_present_values_come_first_and_their_changes_after_them(
    agent: Agent, memory: Memory, delivery: Delivery
) -> None:
    heard: list[Event] = []

    @agent.memory.on_change("k_*", start="current", delivery=delivery)
    async def react(event: Event) -> None:
        heard.append(event)

    await memory.set("k_a", 1)
    await memory.set("k_deleted", 1)
    await memory.set("k_over", 1, ttl=0.05)
    await memory.set("k_b", 1)
    revision = await memory.set("k_a", 2)
    await memory.delete("k_deleted")
    await memory.set("other", 1)

    async def over() -> bool:
        return not await memory.exists("k_over")

    await eventually(over)
    async with agent:
        await settled(agent)
        now = list(heard)
        await memory.set("k_b", 2)
        await memory.set("k_deleted", 2)
        await settled(agent)
    values = [event for event in heard if event.reason != "expired"]
    assert shape(values) == [("k_b", 1, None), ("k_a", 2, 1), ("k_b", 2, 1), ("k_deleted", 2, None)]
    assert shape([event for event in now if event.reason is None]) == shape(values[:2])
    assert values[1].revision == revision


@pytest.mark.parametrize("delivery", ["agent", "instance"])
async def test_where_nothing_is_present_it_begins_with_the_first_change(
    agent: Agent, memory: Memory, delivery: Delivery
) -> None:
    heard: list[Event] = []

    @agent.memory.on_change("k", start="current", delivery=delivery)
    async def react(event: Event) -> None:
        heard.append(event)

    await memory.set("k", 1)
    await memory.delete("k")
    async with agent:
        await memory.set("k", 2)
        await eventually(lambda: shape(heard) == [("k", 2, None)])


async def test_only_a_handler_that_has_never_run_begins_with_the_present(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    heard: list[Any] = []
    await memory.set("k", 0)
    for round in range(3):
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("*", start="current", scope="global")
        async def react(event: Event) -> None:
            heard.append((event.data, event.previous_data))

        async with agent:
            await memory.set("k", 2 * round + 1)
            await settled(agent)
        await memory.set("k", 2 * round + 2)
    assert heard == [(number, number - 1 if number else None) for number in range(6)]


async def test_a_poison_value_delays_the_changes_until_it_is_given_up_and_other_values_not_at_all(
    agent: Agent, memory: Memory
) -> None:
    heard: list[Any] = []

    @agent.memory.on_change("k_*", start="current", retries=2)
    async def react(event: Event) -> None:
        if event.key == "k_poison" and event.data == 1:
            raise ValueError("poison")
        heard.append((event.key, event.data))

    for key in ("k_poison", "k_a", "k_b"):
        await memory.set(key, 1)
    async with agent:
        await eventually(lambda: heard == [("k_a", 1), ("k_b", 1)], within=0.5)  # long before it is given up
        await memory.set("k_a", 2)
        await memory.set("k_poison", 2)
        await settled(agent)
    assert heard == [("k_a", 1), ("k_b", 1), ("k_a", 2), ("k_poison", 2)]


async def test_it_goes_on_in_the_midst_of_the_present_after_a_stop(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    await memory.set_many({f"k_{number:03}": number for number in range(200)})
    handled: list[int] = []

    def version(delay: float) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k_*", start="current")
        async def react(event: Event) -> None:
            await asyncio.sleep(delay)
            handled.append(event.data)

        return agent

    async with version(0.005):
        await eventually(lambda: len(handled) >= 50)
    assert len(handled) < 200
    await memory.set("k_150", -1)
    agent = version(0)
    async with agent:
        await settled(agent)
    assert handled == [*range(200), -1]


@asynccontextmanager
async def counting(memory: Memory, keys: int) -> AsyncIterator[dict[str, int]]:
    """Count so many keys up, as fast as the server takes it; give what was acknowledged of each."""
    acknowledged: dict[str, int] = {}

    async def count(key: str) -> None:
        number = 0
        while True:
            await memory.set(key, number + 1)
            number = acknowledged[key] = number + 1

    tasks = [asyncio.create_task(count(f"k_hot_{key}")) for key in range(keys)]
    try:
        await eventually(lambda: len(acknowledged) == keys)
        yield acknowledged
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def have_reached(heard: dict[str, list[Event]], target: dict[str, int]) -> bool:
    return all(heard[key] and heard[key][-1].data >= number for key, number in target.items())


@pytest.mark.parametrize(
    ("delivery", "still", "rounds"),
    [("agent", 0, length(40, 200)), ("instance", 0, length(20, 200)), ("agent", 1500, length(3, 20))],
)
@pytest.mark.timeout(length(90, 600))
async def test_under_full_load_every_key_begins_with_its_present_value_and_misses_nothing(
    server: NatsServer, namespace: str, memory: Memory, delivery: Delivery, still: int, rounds: int
) -> None:
    for begin in range(0, still, 500):
        await memory.set_many({f"k_still_{number}": number for number in range(begin, begin + 500)})
    async with counting(memory, 12) as acknowledged:
        for round in range(rounds):
            heard: dict[str, list[Event]] = defaultdict(list)
            agent = Agent(f"tester-{round}", nats_url=server.url, namespace=namespace)

            @agent.memory.on_change("k_*", start="current", delivery=delivery)
            async def react(event: Event, heard: dict[str, list[Event]] = heard) -> None:
                heard[event.key].append(event)

            before = dict(acknowledged)
            async with agent:
                target = {key: number + 3 for key, number in acknowledged.items()}
                await eventually(partial(have_reached, heard, target), within=20)
            assert len(heard) == len(before) + still, f"round {round}: a key is missing"
            for key, events in heard.items():
                values = [event.data for event in events]
                if key.startswith("k_still"):
                    assert len(values) == 1
                    continue
                assert values[0] >= before[key], f"round {round}: {key} began with what it was before"
                assert values == list(range(values[0], values[0] + len(values))), f"round {round}: {key}"
                assert [event.previous_data for event in events] == [value - 1 or None for value in values]


@pytest.mark.parametrize("delivery", ["agent", "instance"])
async def test_an_erased_value_is_no_present_value_even_before_its_delete(
    agent: Agent, memory: Memory, delivery: Delivery
) -> None:
    heard: list[Event] = []

    @agent.memory.on_change("k_*", scope="session", start="current", delivery=delivery)
    async def react(event: Event) -> None:
        heard.append(event)

    await memory.set_personal(["session"])
    erased, readable = memory.session("user-1"), memory.session("user-2")
    await readable.set("k_a", 1)
    await erased.set("k_a", 2)
    fabric = await memory._fabric()
    for stored in await fabric.keys.stored(["session.user-1"]):
        await fabric.keys.destroy(stored)
    await fabric.keys.policies.announce()
    async with agent:
        await settled(agent)
        await erased.set("k_a", 3)
        await readable.set("k_a", 4)
        await settled(agent)
    assert shape(heard) == [("k_a", 1, None), ("k_a", 3, None), ("k_a", 4, 1)]
    assert not any(event.erased for event in heard)
    seen: list[Event | CaughtUp] = []
    async with aclosing(memory.watch("k_*", scope="session", start="current")) as watched:
        async for item in watched:
            if isinstance(item, CaughtUp):
                break
            seen.append(item)
    assert [item.data for item in seen if isinstance(item, Event)] == [3, 4]
    for stored in await fabric.keys.stored(["session.user-1"]):
        await fabric.keys.destroy(stored)
    async with aclosing(memory.watch("k_*", scope="session", start="current")) as watched:
        first = await anext(watched)
    assert isinstance(first, Event)
    assert (first.data, first.previous_data) == (4, 1)
