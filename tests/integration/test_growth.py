"""A handler that starts itself more and more often is reported, long before the limit on depth; others are not."""

import asyncio
import logging

import pytest

from agentfield import Agent, Event, Memory
from agentfield.memory.reacting import growth
from agentfield.testing import settled
from tests.support import NatsServer


@pytest.fixture
def agent(server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """An agent that looks often, and is stopped soon."""
    monkeypatch.setattr(growth, "_EVERY", 10)
    monkeypatch.setenv("AGENTFIELD_MAX_DEPTH", "8")
    return Agent("tester", nats_url=server.url, namespace=namespace)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_a_handler_that_multiplies_is_reported_once_with_where_it_began(
    agent: Agent, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.memory.on_change("branch_*", concurrency=20)
    async def multiply(event: Event) -> None:
        await agent.memory.set_many({f"{event.key}a": 1, f"{event.key}b": 1})

    async with agent:
        seed = await memory.set("branch_0", 0)
        await settled(agent)
    (report,) = warnings(caplog)
    assert "handler tester.multiply starts itself more and more often" in report
    assert f"it began with branch_0 (revision {seed})" in report
    assert "tester.multiply wrote branch_0" in report
    assert "only when 8 handlers have started one another" in report


async def test_neither_loops_without_branches_nor_what_spreads_before_are_reported(
    agent: Agent, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    handled = 0

    @agent.memory.on_change("loop_*", concurrency=20)
    async def again(event: Event) -> None:
        await agent.memory.set(event.key, event.data)

    @agent.memory.on_change("list")
    async def unpack(event: Event) -> None:
        await agent.memory.set("unpacked", event.data)

    @agent.memory.on_change("unpacked")
    async def spread(event: Event) -> None:
        await agent.memory.set_many({f"item_{number}": 1 for number in range(event.data)})

    @agent.memory.on_change("item_*", concurrency=20)
    async def proceed(event: Event) -> None:
        nonlocal handled
        handled += 1
        if event.data < 3:
            await agent.memory.set(event.key, event.data + 1)

    async with agent:
        await asyncio.gather(*(memory.set(f"loop_{number}", 1) for number in range(40)))
        await memory.set("list", 100)
        await settled(agent)
    assert handled == 300
    assert warnings(caplog) == []
