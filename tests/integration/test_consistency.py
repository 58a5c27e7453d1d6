"""Reads that choose their price: what each consistency promises, on one server."""

from __future__ import annotations

import asyncio

import pytest

import agentfield
from agentfield import Agent, Memory
from agentfield.errors import InvalidInputError
from agentfield.memory.cache import NearCache
from agentfield.memory.reads import Consistency
from tests.support import NatsServer, eventually

MODES: tuple[Consistency, ...] = ("strong", "session", "cached", "linearizable")


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_reads_what_is_there_and_what_is_not(
    server: NatsServer, namespace: str, mode: Consistency
) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        revision = await memory.set("here", {"a": [1, None]})
        assert await memory.get("here", consistency=mode) == {"a": [1, None]}
        assert await memory.get("absent", "default", consistency=mode) == "default"
        assert await memory.exists("here", consistency=mode)
        assert not await memory.exists("absent", consistency=mode)
        entry = await memory.entry("here", consistency=mode)
        assert entry is not None
        assert entry.revision == revision
        assert await memory.get_many(["here", "absent"], consistency=mode) == {"here": {"a": [1, None]}}
        await memory.delete("here")
        assert not await memory.exists("here", consistency=mode)


async def test_an_unknown_mode_is_refused(server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        with pytest.raises(InvalidInputError, match="eventual"):
            await memory.get("k", consistency="eventual")  # type: ignore[call-overload]


@pytest.mark.parametrize("mode", ["session", "cached"])
async def test_a_reader_is_never_behind_its_own_writes(server: NatsServer, namespace: str, mode: Consistency) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        for number in range(500):
            await memory.set("k", number)
            assert await memory.get("k", consistency=mode) == number


async def test_a_cached_read_follows_the_writes_of_others(server: NatsServer, namespace: str) -> None:
    async with (
        agentfield.connect(server.url, namespace=namespace) as reader,
        agentfield.connect(server.url, namespace=namespace) as writer,
    ):
        assert await reader.get("k", consistency="cached") is None
        await writer.set("k", "new")

        async def caught_up() -> bool:
            return bool(await reader.get("k", consistency="cached") == "new")

        await eventually(caught_up)
        await writer.delete("k")

        async def gone() -> bool:
            return not await reader.exists("k", consistency="cached")

        await eventually(gone)


async def test_what_a_callee_wrote_its_caller_reads_from_the_cache_at_once(server: NatsServer, namespace: str) -> None:
    caller, callee = (Agent(name, nats_url=server.url, namespace=namespace) for name in ("caller", "callee"))

    @callee.reasoner()
    async def write(number: int) -> None:
        await callee.memory.set("shared", number)

    @caller.reasoner()
    async def compare(rounds: int) -> list[int]:
        wrong = []
        for number in range(rounds):
            await caller.call("callee.write", number=number)
            if await caller.memory.get("shared", consistency="cached") != number:
                wrong.append(number)
        return wrong

    async with caller, callee:
        assert await caller.call("caller.compare", rounds=200) == []


async def test_a_handler_reads_from_the_cache_no_older_than_its_event(server: NatsServer, namespace: str) -> None:
    agent = Agent("watcher", nats_url=server.url, namespace=namespace)
    behind: list[object] = []
    handled: list[int] = []

    @agent.memory.on_change("count")
    async def compare(event: agentfield.Event) -> None:
        value = await agent.memory.get("count", consistency="cached")
        if value < event.data:
            behind.append((value, event.data))
        handled.append(event.data)

    async with agent, agentfield.connect(server.url, namespace=namespace) as writer:
        for number in range(300):
            await writer.set("count", number)
        await eventually(lambda: len(handled) == 300, within=10)
    assert behind == []


async def test_the_cache_is_bounded_in_keys_and_bytes_and_stays_right(server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        fabric = await memory._fabric()
        cache = NearCache(fabric, max_keys=10, max_bytes=20_000)
        await cache.start()
        subjects = [fabric.subjects.memory(agentfield.Scope("global", "global"), f"k_{n}") for n in range(100)]
        for number, subject in enumerate(subjects):
            await memory.set(f"k_{number}", "x" * 100)
            (record,) = await cache.last([subject], 0)
            assert record is not None
            assert cache.freshness.keys <= 10
            assert cache.freshness.size <= 20_000
        revision = await memory.set("k_5", "evicted, then read again")
        (record,) = await cache.last([subjects[5]], revision)
        assert record is not None
        assert record.sequence == revision


async def test_the_cache_survives_a_restart_of_the_server(fresh_server: NatsServer, namespace: str) -> None:
    async with (
        agentfield.connect(fresh_server.url, namespace=namespace) as reader,
        agentfield.connect(fresh_server.url, namespace=namespace) as writer,
    ):
        await writer.set("k", 0)
        assert await reader.get("k", consistency="cached") == 0
        await fresh_server.restart(gracefully=False)
        revision = await writer.set("k", 1)
        await writer.set("other", 1)

        async def caught_up() -> bool:
            return bool((await reader.freshness()).revision > revision)

        await eventually(caught_up, within=15)
        assert await reader.get("k", consistency="cached") == 1


async def test_an_entry_that_expires_is_absent_from_the_cache_at_once(server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        await memory.set("k", 1, ttl=0.5)
        entry = await memory.entry("k", consistency="cached")
        assert entry is not None
        assert entry.expires_at is not None
        fabric = await memory._fabric()
        expires = int(entry.expires_at.timestamp() * 1_000_000_000)
        while fabric.log.now() < expires:
            present = await memory.exists("k", consistency="cached")
            assert present or fabric.log.now() >= expires - 1_000_000
            await asyncio.sleep(0)
        await eventually(lambda: fabric.log.now() > expires + 2_000_000)
        assert not await memory.exists("k", consistency="cached")


async def test_views_share_one_cache(server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        view: Memory = memory.session("s")
        await view.set("k", 1)
        assert await view.get("k", consistency="cached") == 1
        assert await memory.get("k", scope="session", scope_id="s", consistency="cached") == 1
        assert (await memory.freshness()).keys == (await view.freshness()).keys > 0
