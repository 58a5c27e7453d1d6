"""What the near-cache answers at a glance is what the log would answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentfield import Agent, connect
from agentfield.errors import InvalidInputError
from agentfield.execution import Seen
from agentfield.memory.cache import NearCache
from agentfield.scope import Scope
from tests.support import NatsServer, eventually

SCOPES = ("workflow", "session", "actor", "global")
KEYS = ("a", "b_c")


@pytest.mark.parametrize("seed", range(3))
async def test_a_cached_get_answers_as_a_strong_one_after_any_write_in_any_scope(
    server: NatsServer, namespace: str, seed: int
) -> None:
    choose = random.Random(seed)
    agent = Agent("reader", nats_url=server.url, namespace=namespace)
    async with agent, agent.session("s"), agent.workflow("w"):
        memory = agent.memory
        for number in range(150):
            key, scope = choose.choice(KEYS), choose.choice(SCOPES)
            write = choose.randrange(6)
            if write < 3:
                await memory.set(key, {"number": number}, scope=scope)
            elif write == 3:
                await memory.set(key, None, scope=scope)
            elif write == 4:
                await memory.delete(key, scope=scope)
            else:
                await memory.set(key, number, scope=scope, ttl=60.0)
            for looked_at in (None, scope):
                cached = await memory.get(key, "absent", scope=looked_at, consistency="cached")
                assert cached == await memory.get(key, "absent", scope=looked_at)


async def test_every_cached_get_gives_a_value_of_its_own(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.set("k", {"list": [1]})
        for _ in range(3):
            value: Any = await memory.get("k", consistency="cached")
            assert value == {"list": [1]}
            value["list"].append(2)


async def test_a_value_that_expires_is_never_read_late_from_the_cache(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.set("k", 1, ttl=0.3)
        read_at = time.time()
        while await memory.get("k", consistency="cached") == 1:
            read_at = time.time()
            await asyncio.sleep(0)
        (event,) = [event async for event in memory.history("k") if event.operation == "set"]
        assert event.expires_at is not None
        assert read_at < event.expires_at.timestamp() + 0.05


async def test_what_is_found_at_a_glance_counts_as_seen_a_delete_too(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        fabric = await memory._fabric()
        cache = NearCache(fabric)
        await cache.start()
        subjects = tuple(fabric.subjects.memory(Scope(kind, kind), "k") for kind in ("session", "actor", "global"))
        revision = await memory.set("k", 1)
        await cache.last(subjects, 0)
        for _ in range(2):
            seen = Seen()
            assert cache.glance(subjects, seen) == b"1"
            assert seen.revision == revision
        await memory.set("k", 2, scope="actor", scope_id="actor")
        await memory.delete("k", scope="actor", scope_id="actor")
        await cache.last(subjects, memory.seen.revision)
        seen = Seen()
        assert cache.glance(subjects, seen) == b"1"
        assert seen.revision == memory.seen.revision > revision


@pytest.mark.parametrize("wrong", [[], {}, b"k", 1, None])
async def test_what_is_no_key_and_no_scope_is_refused_from_the_cache_too(
    server: NatsServer, namespace: str, wrong: Any
) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.get("k", consistency="cached")
        with pytest.raises(InvalidInputError):
            await memory.get(wrong, consistency="cached")
        if wrong is not None:
            with pytest.raises(InvalidInputError):
                await memory.get("k", scope=wrong, consistency="cached")


async def test_a_glance_needs_the_loop_and_the_position_of_the_cache(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.set("k", 1)
        fabric = await memory._fabric()
        cache = NearCache(fabric)
        await cache.start()
        subjects = (fabric.subjects.memory(Scope("global", "global"), "k"),)
        assert cache.glance(subjects, Seen()) is None  # not here yet
        await cache.last(subjects, 0)
        assert cache.glance(subjects, Seen()) == b"1"
        assert cache.glance(subjects, Seen(cache.position + 1)) is None

        async def elsewhere() -> bytes | None:
            return cache.glance(subjects, Seen())

        assert await asyncio.to_thread(asyncio.run, elsewhere()) is None
        await cache.aclose()
        assert cache.glance(subjects, Seen()) is None


async def test_a_crowded_cache_keeps_what_is_looked_at(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.set_many({f"key_{number}": number for number in range(20)})
        fabric = await memory._fabric()
        subjects = [fabric.subjects.memory(Scope("global", "global"), f"key_{number}") for number in range(20)]
        cache = NearCache(fabric, max_keys=10)
        await cache.start()
        favourite = (subjects[0],)
        await cache.last(favourite, 0)
        for subject in subjects[1:]:
            await cache.last([subject], 0)
            assert cache.glance(favourite, Seen()) == b"0"
        assert cache.freshness.keys == 10


def test_a_cache_that_nobody_closes_does_not_hold_up_the_end_of_its_loop(server: NatsServer, namespace: str) -> None:
    agent = Agent("script", nats_url=server.url, namespace=namespace)

    async def read() -> None:
        await agent.memory.set("k", 1)
        assert await agent.memory.get("k", consistency="cached") == 1

    with asyncio.Runner() as runner:
        runner.run(read())
        ended = time.monotonic()
    assert time.monotonic() - ended < 1, "nobody reads any more: an answer that is waited for cannot come"

    async def readers() -> int:
        async with connect(server.url, namespace=namespace) as memory:
            fabric = await memory._fabric()
            return int((await fabric.log.state())["consumer_count"])

    assert asyncio.run(eventually(lambda: _none(readers), what="its reader is gone from the server"))


async def _none(count: Callable[[], Awaitable[int]]) -> bool:
    return await count() == 0
