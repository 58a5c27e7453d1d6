"""The near-cache: what a cached get takes, beside a GET of redis-py, and how fast events are applied to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from agentfield.fabric.fabric import Fabric
from agentfield.fabric.reader import Reader
from agentfield.memory.cache import NearCache
from agentfield.scope import GLOBAL
from agentfield.subject import Subjects
from benchmarks.consuming import raw_consumer
from benchmarks.measuring import Operation, Span, rates, times
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, PAYLOAD, VALUE, Surroundings, redis_client, redis_port

_KEY = "feature_flags"
_TOGETHER = 100
"""Calls that are timed as one: a cached get takes little more than reading the clock does."""
_KEYS = 1000


async def get_cached(here: Surroundings) -> Table:
    """A cached get of a key that only the last of four scopes has; its value is decoded anew each time."""
    async with here.raw() as client, here.agent() as agent, _redis() as redis:
        memory = agent.memory
        await memory.set(_KEY, VALUE, scope="global")
        subject = f"$JS.API.DIRECT.GET.{LOG}.{Subjects(NAMESPACE).memory(GLOBAL, _KEY)}"
        contestants: dict[str, Operation] = {
            "cached get, through four scopes": _many(lambda: memory.get(_KEY, consistency="cached")),
            "cached get, in one scope": _many(lambda: memory.get(_KEY, scope="global", consistency="cached")),
            "raw direct get": _many(lambda: client.request(subject, timeout=PATIENCE)),
        }
        if redis is not None:
            plain, asynchronous = redis

            async def blocking() -> None:
                for _ in range(_TOGETHER):
                    plain.get(_KEY)

            contestants["redis-py GET"] = blocking
            contestants["redis-py GET, asyncio"] = _many(lambda: asynchronous.get(_KEY))
        found = await times(contestants, rounds=here.scale(20, 6), calls=here.scale(10, 5))
    table = Table("a cached get", ("p50 µs", "p99 µs"))
    each = {name: one.shared_by(_TOGETHER) for name, one in found.items()}
    baseline = each["cached get, through four scopes"]
    for name, one in each.items():
        targets = []
        if name == "cached get, through four scopes":
            targets.append(Target(one.p50 * 1e6, "≤", 10, "µs"))
        ratio = one.ratio_to(baseline)
        if name.startswith("redis-py"):
            targets.append(Target(ratio, "≥", 30, "× cached"))
        table.add(name, one.p50 * 1e6, one.p99 * 1e6, ratio=ratio, targets=targets)
    table.remarks.append(f"Timed {_TOGETHER} at a time. redis-py hands out bytes, the cached get the decoded value.")
    if redis is None:
        table.remarks.append(
            "redis-py left out: no redis-server (Debian: apt-get install redis-server) or no redis-py (group bench)."
        )
    return table


async def applied(here: Surroundings) -> Table:
    """Events from the server into a near-cache that holds all their keys, against a plain consumer by nats-py."""
    amount, rounds = here.scale(50_000, 10_000), here.scale(6, 3)
    async with here.raw() as client, here.agent() as agent, _fabric(here) as fabric:
        keys = [f"event_{number}" for number in range(_KEYS)]
        subjects = [fabric.subjects.memory(GLOBAL, key) for key in keys]
        await agent.memory.set_many(dict.fromkeys(keys, VALUE), scope="global")
        caches = [NearCache(fabric) for _ in range(rounds + 1)]
        for cache in caches:
            await cache.last(subjects, 0)
        first = int((await fabric.log.state())["last_seq"]) + 1
        for begin in range(0, amount, _KEYS):
            await agent.memory.set_many({key: {**VALUE, "number": begin} for key in keys}, scope="global")

        async def apply() -> Span:
            cache = caches.pop()
            begun = time.perf_counter()
            async with Reader(fabric.connection, LOG, [], start=first) as reader:
                async for record in reader.until(first + amount - 1):
                    cache.apply(record)
            span = Span(amount, time.perf_counter() - begun)
            assert cache.freshness.keys == _KEYS
            return span

        raw = raw_consumer(client.jetstream(timeout=PATIENCE), ">", amount, start=first)
        found = await rates({"raw": raw, "ours": apply}, rounds=rounds)
    table = Table(f"{amount:,} events applied to a near-cache of {_KEYS:,} keys", ("events a second",))
    table.add("raw pull consumer, decodes only", found["raw"].typical, ratio=1.0)
    speed = found["ours"].typical
    ratio = found["ours"].ratio_to(found["raw"])
    table.add("near-cache", speed, ratio=ratio, targets=[Target(speed, "≥", 20_000, "a second")])
    return table


@asynccontextmanager
async def _redis() -> AsyncIterator[tuple[Any, Any] | None]:
    """A client that blocks and one for asyncio, over TCP as everybody else here; None where there is no redis."""
    module = redis_client()
    with redis_port() as port:
        if module is None or port is None:
            yield None
            return
        plain, asynchronous = module.Redis(port=port), module.asyncio.Redis(port=port)
        try:
            plain.set(_KEY, PAYLOAD)
            yield plain, asynchronous
        finally:
            plain.close()
            await asynchronous.aclose()


@asynccontextmanager
async def _fabric(here: Surroundings) -> AsyncIterator[Fabric]:
    fabric = await Fabric.open(here.url, namespace=NAMESPACE, name="bench")
    try:
        yield fabric
    finally:
        await fabric.aclose()


def _many(operation: Callable[[], Awaitable[object]]) -> Operation:
    async def together() -> None:
        for _ in range(_TOGETHER):
            await operation()

    return together
