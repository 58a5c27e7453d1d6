"""``delivery="instance"``: every instance handles every event while it is served, and nothing is left on the server."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import nats
import pytest

from agentfield import Agent, Event, InvalidInputError, Memory
from agentfield.execution import current
from agentfield.fabric.consumers.progress import WINDOW
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.testing import NotSettledError, settled
from tests.support import NatsServer, eventually
from tests.support.events import write_many


@pytest.fixture
def instance(server: NatsServer, namespace: str) -> Callable[..., tuple[Agent, list[Event]]]:
    """Return a function that makes an instance of the agent, not yet served, and the list of what it hears."""

    def make(pattern: str = "k_*", **options: Any) -> tuple[Agent, list[Event]]:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)
        heard: list[Event] = []

        @agent.memory.on_change(pattern, delivery="instance", **options)
        async def react(event: Event) -> None:
            heard.append(event)

        return agent, heard

    return make


Make = Callable[..., tuple[Agent, list[Event]]]


async def consumers(fabric: Fabric) -> list[str]:
    return list((await api(fabric.connection, f"CONSUMER.NAMES.{fabric.log.stream}", {}))["consumers"] or [])


async def test_every_instance_hears_every_event_in_order_with_what_was_there_before(
    instance: Make, memory: Memory
) -> None:
    await memory.set("k_0", "before")
    (one, first), (two, second) = instance(), instance()
    async with one, two:
        for number in range(100):
            await memory.set(f"k_{number % 3}", number)
        await memory.set("other", 1)
        await settled(one, two)
    for heard in (first, second):
        assert [event.data for event in heard] == list(range(100))
        assert [event.previous_data for event in heard] == ["before", None, None, *range(97)]


async def test_nothing_durable_is_made_and_nothing_is_left(instance: Make, memory: Memory, fabric: Fabric) -> None:
    agent, heard = instance()
    async with agent:
        await memory.set("k_1", 1)
        await settled(agent)
        (reader,) = await consumers(fabric)
        info = await api(fabric.connection, f"CONSUMER.INFO.{fabric.log.stream}.{reader}")
        assert "durable_name" not in info["config"]
    assert await consumers(fabric) == []
    await memory.set("k_1", "while nobody is there")
    again, later = instance()
    async with again:
        await memory.set("k_1", 2)
        await settled(again)
    assert [event.data for event in (*heard, *later)] == [1, 2]


@pytest.mark.parametrize("start", ["new", "all", "datetime", "revision", "ahead"])
async def test_every_time_it_begins_where_start_says(instance: Make, memory: Memory, start: str) -> None:
    await memory.set("k_1", 0)
    moment = datetime.now(UTC)
    revision = await memory.set("k_1", 1)
    begin: Any = {"datetime": moment, "revision": revision, "ahead": revision + 2}.get(start, start)
    for last in (2, 3):
        agent, heard = instance(start=begin)
        async with agent:
            await memory.set("k_1", last)
            if start != "ahead" or last == 3:
                await eventually(lambda heard=heard, last=last: heard and heard[-1].data == last)  # type: ignore[misc]
            else:
                await settled(agent)
        wanted = {"new": [last], "all": range(last + 1), "ahead": range(3, last + 1)}.get(start, range(1, last + 1))
        assert [event.data for event in heard] == list(wanted)
        assert all(event.previous_data == (event.data - 1 if event.data else None) for event in heard)


async def test_it_runs_in_the_events_place_with_retries_a_timeout_and_dead_letters(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    tries: list[tuple[str, Any]] = []

    @agent.memory.on_change("k_*", delivery="instance", retries=1, timeout=0.2, concurrency=4)
    async def react(event: Event) -> None:
        execution = current.get()
        assert execution is not None
        tries.append((event.key, (execution.workflow_id, execution.cause == event.id)))
        if event.key == "k_slow":
            await asyncio.Event().wait()
        if event.key == "k_poison":
            raise ValueError("poison")

    async with agent:
        for key in ("k_slow", "k_poison", "k_good"):
            await memory.workflow("w").set(key, 1)
        await settled(agent)
    assert sorted(tries) == [(f"k_{key}", ("w", True)) for key in ("good", "poison", "poison", "slow", "slow")]
    client = await nats.connect(server.url)
    try:
        stream = client.jetstream()
        letters = [await stream.get_msg(f"{namespace.upper()}_DEADLETTERS", sequence) for sequence in (1, 2)]
    finally:
        await client.close()
    errors = {letter["key"]: letter["error"]["type"] for letter in (json.loads(each.data or b"") for each in letters)}
    assert errors == {"k_slow": "TimeoutError", "k_poison": "ValueError"}


async def test_settled_waits_for_every_instance_of_its_own(server: NatsServer, namespace: str, memory: Memory) -> None:
    go = asyncio.Event()
    handled: list[str] = []

    def instance(name: str, *, waits: bool) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k", delivery="instance")
        async def react(event: Event) -> None:
            if waits:
                await go.wait()
            handled.append(name)

        return agent

    fast, slow = instance("fast", waits=False), instance("slow", waits=True)
    async with fast, slow:
        await memory.set("k", 1)
        with pytest.raises(NotSettledError, match="being handled"):
            await settled(fast, slow, within=0.5)
        assert handled == ["fast"]
        go.set()
        await settled(fast, slow)
    assert handled == ["fast", "slow"]


@pytest.mark.parametrize("start", ["new", "current"])
async def test_a_restart_of_the_server_costs_no_event_and_repeats_none(
    fresh_server: NatsServer, namespace: str, start: Any
) -> None:
    agent = Agent("tester", nats_url=fresh_server.url, namespace=namespace)
    heard: list[Any] = []

    @agent.memory.on_change("k_*", delivery="instance", start=start)
    async def react(event: Event) -> None:
        heard.append(event.data)

    await agent.memory.set("k_1", 0)
    async with agent:
        for number in range(1, 40):
            await agent.memory.set("k_1", number)
            if number % 15 == 0:
                await fresh_server.restart(gracefully=number == 15)
        await eventually(lambda: heard[-1:] == [39], within=20)
    assert heard == list(range(0 if start == "current" else 1, 40))


async def test_a_loop_that_breaks_off_goes_on_where_it_was(
    instance: Make, memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent, heard = instance()
    async with agent:
        run = agent.handlers["react"]
        await memory.set("k_1", 1)
        await settled(agent)
        with monkeypatch.context() as broken:
            broken.setattr(run, "_taken", None)  # whatever the reason
            await memory.set("k_1", 2)
            await eventually(lambda: "broke off" in caplog.text)
        await memory.set("k_1", 3)
        await settled(agent)
    assert [event.data for event in heard] == [1, 2, 3]


async def test_a_handler_slower_than_the_writers_holds_a_window_and_loses_nothing(
    server: NatsServer, namespace: str, fabric: Fabric
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    go = asyncio.Event()
    heard: list[int] = []

    @agent.memory.on_change("k_*", delivery="instance")
    async def react(event: Event) -> None:
        await go.wait()
        heard.append(event.revision)

    async with agent:
        last = await write_many(fabric, [f"k.{number % 50}" for number in range(5000)])
        consumer = agent.handlers["react"]._consumer
        progress = consumer._progress  # type: ignore[attr-defined]
        await eventually(lambda: progress.is_full, within=15)
        assert progress.outstanding <= WINDOW
        go.set()
        await settled(agent)
    assert heard == list(range(last - 4999, last + 1))


async def test_what_each_instance_does_counts_although_all_do_the_same(server: NatsServer, namespace: str) -> None:
    def make() -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k_*", delivery="instance")
        async def count(event: Event) -> None:
            await agent.memory.increment("handled", scope="global")
            await agent.memory.set("by", event.key, scope="global")

        return agent

    one, two = make(), make()
    async with one, two:
        for number in range(10):
            await one.memory.set(f"k_{number}", number)
        await settled(one, two)
        assert await one.memory.get("handled") == 20
        assert len([event async for event in one.memory.history("by")]) == 20


async def test_a_handler_of_every_instance_cannot_be_the_one_that_has_handled_an_event(
    server: NatsServer, namespace: str
) -> None:
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    raised: list[Exception] = []

    @agent.memory.on_change("k", delivery="instance")
    async def react(event: Event) -> None:
        try:
            async with agent.memory.transaction(once=True) as tx:
                tx.set("x", 1)
        except InvalidInputError as error:
            raised.append(error)

    async with agent:
        await agent.memory.set("k", 1)
        await settled(agent)
    (error,) = raised
    assert "one with delivery='agent'" in str(error)
