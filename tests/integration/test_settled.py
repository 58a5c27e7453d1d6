"""``settled()`` returns when handlers have nothing left to do, never before; if that never comes, it names the busy."""

import asyncio
import random
from collections import Counter
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

from agentfield import Agent, Event, InvalidInputError, Memory
from agentfield.testing import Agents, NotSettledError, settled
from tests.support.recording import recorded, recorder

ROUNDS = 100
STEPS = 4


def relay(name: str, *, delay: float, concurrency: int = 1) -> tuple[Agent, Counter[str]]:
    """An agent that hands each key on, from ``<name>_<step>_<id>`` to the other agent's next step, after a while."""
    agent, handled = Agent(name), Counter[str]()
    chance = random.Random(name)

    @agent.memory.on_change(f"{name}_*", concurrency=concurrency)
    async def hand_on(event: Event) -> None:
        await asyncio.sleep(chance.random() * delay)
        _, step, id = event.key.split("_")
        if int(step) < STEPS:
            other = "pong" if name == "ping" else "ping"
            await agent.memory.set(f"{other}_{int(step) + 1}_{id}", event.data)
        await asyncio.sleep(chance.random() * delay)
        handled[id] += 1

    return agent, handled


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_it_never_returns_before_the_end_of_a_chain_across_two_agents(
    agentfield_agents: Agents, agentfield_memory: Memory, concurrency: int
) -> None:
    ping, pings = relay("ping", delay=0.01, concurrency=concurrency)
    pong, pongs = relay("pong", delay=0.01, concurrency=concurrency)
    chance = random.Random(concurrency)
    async with agentfield_agents.run(ping, pong):
        for round in range(ROUNDS):
            ids = [f"{round}x{number}" for number in range(chance.randint(1, 3))]
            await asyncio.gather(*(agentfield_memory.set(f"ping_1_{id}", id) for id in ids))
            await agentfield_agents.settled()
            left = {id: (pings[id], pongs[id]) for id in ids if (pings[id], pongs[id]) != (2, 2)}
            assert not left, f"round {round}: settled too early: {left}"


async def test_it_never_returns_early_right_after_the_agents_have_started(
    agentfield_agents: Agents, agentfield_memory: Memory
) -> None:
    for round in range(10):
        (ping, pings), (pong, pongs) = relay("ping", delay=0.005), relay("pong", delay=0.005)
        async with agentfield_agents.run(ping, pong):
            await agentfield_memory.set(f"ping_1_{round}", round)
            await agentfield_agents.settled()
            assert (pings[str(round)], pongs[str(round)]) == (2, 2)


async def test_with_nothing_to_do_it_returns_at_once(agentfield_agents: Agents, agentfield_memory: Memory) -> None:
    await agentfield_memory.set("ping_1_x", "before the agents came, so not for them")
    ping, pings = relay("ping", delay=0)
    silent = Agent("silent")
    await settled()
    async with agentfield_agents.run(ping, silent):
        await agentfield_agents.settled(within=1)
        await agentfield_memory.set("for_nobody", 1)
        await agentfield_agents.settled(within=1)
    assert not pings


async def test_a_slow_handler_is_waited_for_and_named_when_it_takes_too_long(
    agentfield_agents: Agents, agentfield_memory: Memory
) -> None:
    agent, go, handled = Agent("slow"), asyncio.Event(), list[int]()

    @agent.memory.on_change("k")
    async def ponder(event: Event) -> None:
        await go.wait()
        handled.append(event.data)

    async with agentfield_agents.run(agent):
        first = await agentfield_memory.set("k", 1)
        second = await agentfield_memory.workflow("w").set("k", 2)
        with pytest.raises(NotSettledError) as caught:
            await agentfield_agents.settled(within=0.5)
        waiting = asyncio.create_task(agentfield_agents.settled())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        go.set()
        await waiting
        assert handled == [1, 2]
    assert str(caught.value).splitlines() == [
        "not settled within 0.5 s; still to be handled:",
        f"  slow.ponder: k in global (revision {first}): being handled",
        f"  slow.ponder: k in workflow 'w' (revision {second}): not begun",
    ]
    assert [each.handler for each in caught.value.unhandled] == ["ponder", "ponder"]


async def test_a_failing_handler_is_waited_for_until_its_event_is_a_dead_letter(
    agentfield_agents: Agents, agentfield_memory: Memory
) -> None:
    agent, tries = Agent("failing"), list[str]()

    @agent.memory.on_change("k_*", retries=2)
    async def fail(event: Event) -> None:
        tries.append(event.key)
        if event.key == "k_poison":
            raise ValueError("it is poison")
        await agent.memory.set("done", event.key)

    async with agentfield_agents.run(agent):
        await agentfield_memory.set("k_poison", 1)
        await agentfield_memory.set("k_good", 1)
        with pytest.raises(NotSettledError, match=r"k_poison .*: failed 1 of 3 tries: ValueError: it is poison"):
            await agentfield_agents.settled(within=0.15)
        await agentfield_agents.settled()
        assert sorted(tries) == ["k_good", "k_poison", "k_poison", "k_poison"]
        assert await agentfield_memory.get("done") == "k_good"


async def test_handlers_that_are_always_given_more_are_named(
    agentfield_agents: Agents, agentfield_memory: Memory
) -> None:
    agent, over = Agent("busy"), asyncio.Event()

    @agent.memory.on_change("k")
    async def react(event: Event) -> None:
        if not over.is_set():  # in a context of its own, so that it is news, and not a loop of causes
            await asyncio.create_task(agentfield_memory.set("k", 1), context=Context())

    async with agentfield_agents.run(agent):
        await agentfield_memory.set("k", 1)
        with pytest.raises(NotSettledError, match=r"busy\.react: k in global"):
            await agentfield_agents.settled(within=0.5)
        over.set()
        await agentfield_agents.settled()


async def test_what_another_process_handles_is_waited_for(
    agentfield_agents: Agents, agentfield_memory: Memory, tmp_path: Path
) -> None:
    standby = Agent("recorder")

    @standby.memory.on_change("k_*")
    async def record(event: Event) -> None:
        raise AssertionError("the other instance is the active one")

    file = tmp_path / "record"
    async with recorder(agentfield_agents.url, agentfield_agents.namespace, file, pattern="k_*", delay=0.05):
        await agentfield_memory.set("k_0", 0)
        async with agentfield_agents.run(standby):
            for number in range(1, 10):
                await agentfield_memory.set(f"k_{number}", number)
            await agentfield_agents.settled()
            assert len(recorded(file)) == 10


async def test_two_instances_here_are_waited_for_together(agentfield_agents: Agents, agentfield_memory: Memory) -> None:
    handled: list[int] = []

    def instance() -> Agent:
        agent = Agent("twice")

        @agent.memory.on_change("k_*")
        async def react(event: Event) -> None:
            await asyncio.sleep(0.005)
            handled.append(event.data)

        return agent

    async with agentfield_agents.run(instance(), instance()):
        for number in range(30):
            await agentfield_memory.set(f"k_{number % 3}", number)
        await agentfield_agents.settled()
        assert sorted(handled) == list(range(30))


async def test_agents_in_two_namespaces_are_waited_for_together(agentfield_agents: Agents) -> None:
    here, there = Agent("here"), Agent("there")
    handled: list[str] = []

    @here.memory.on_change("k")
    async def pass_on(event: Event) -> None:
        await there.memory.set("k", event.data)
        handled.append("here")

    @there.memory.on_change("k")
    async def receive(event: Event) -> None:
        await asyncio.sleep(0.05)
        handled.append("there")

    other = f"{agentfield_agents.namespace[:30]}-2"
    async with agentfield_agents.run(here), agentfield_agents.run(there, namespace=other):
        assert agentfield_agents.running == (here, there)
        await here.memory.set("k", 1)
        await agentfield_agents.settled()
        assert handled == ["here", "there"]


async def test_an_agent_that_is_not_served_here_cannot_be_waited_for() -> None:
    ping, _ = relay("ping", delay=0)
    with pytest.raises(InvalidInputError, match="'ping' is not served in this process"):
        await settled(ping)


@pytest.mark.parametrize("wrong", [None, "shop", [Agent("shop")]])
async def test_what_is_no_agent_can_neither_run_nor_be_waited_for(agentfield_agents: Agents, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="is no Agent"):
        async with agentfield_agents.run(wrong):
            pass
    with pytest.raises(InvalidInputError, match="is no Agent"):
        await settled(wrong)
    with pytest.raises(InvalidInputError, match="within"):
        await agentfield_agents.settled(within=-1)
