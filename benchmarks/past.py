"""The past: reading a scope as it was, and a key's history, in logs of several sizes."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta

import orjson
from nats.aio.client import Client as RawClient
from nats.js.api import AckPolicy, ConsumerConfig

from agentfield import Memory
from agentfield.scope import Scope
from agentfield.subject import Subjects
from benchmarks.measuring import Operation, Times, times
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, VALUE, Surroundings

KEYS = 1000
"""Keys of the scope that is read; all of them are written again and again, as long as the log grows."""
_OTHERS = 50_000
"""Keys of other scopes, which most of the log is about."""
_SHARE = 10
"""One event in so many is of the scope."""
_BATCH = 1000
_RARE = 10
"""Events of the key whose history is read, spread over the whole log."""
_PLACES = 5
"""Scopes that have the key which is looked for in all of them."""
_SCOPE = Scope("session", "past")
_EVERYTHING = f"{NAMESPACE}.memory.{_SCOPE.kind}.{_SCOPE.token}.>"
_DIRECT = f"$JS.API.DIRECT.GET.{LOG}"


async def as_of(here: Surroundings) -> Table:
    """A scope of 1,000 keys, all written since, at places spread over the log; the same places by the server alone."""
    sizes = here.scale(100_000, 20_000), here.scale(1_000_000, 60_000)
    table = Table(f"a scope of {KEYS:,} keys as of then", ("p50 ms", "p99 ms"))
    found: list[dict[str, Times]] = []
    async with here.raw() as client, here.agent() as agent:
        for size in sizes:
            await _grow(agent.memory, size)
            found.append(await times(_contestants(client, agent.memory, size), rounds=here.scale(12, 4), calls=5))
    for size, each in zip(sizes, found, strict=True):
        baseline = each["items, now"]
        for name, one in each.items():
            ratio = one.ratio_to(baseline)
            targets = []
            if name == "as_of(…).items":
                targets.append(Target(ratio, "≤", 10, "× now"))
                if size == sizes[-1]:
                    growth = ratio / found[0][name].ratio_to(found[0]["items, now"])
                    targets.append(Target(growth, "≤", 1.2, f"× at {sizes[0]:,}"))
            table.add(f"{name}, {size:,} events", one.p50 * 1000, one.p99 * 1000, ratio=ratio, targets=targets)
    table.remarks.append("Ratios are to the same read of the present, in a log of the same size.")
    return table


def _contestants(client: RawClient, memory: Memory, size: int) -> dict[str, Operation]:
    scope = memory.session(_SCOPE.id)
    # Not in step with the batches, and each for itself, so that everybody reads the same ones.
    places = [size * part // 20 + 37 * part for part in range(1, 19, 2)]

    def at_places(operation: Callable[[int], Awaitable[object]]) -> Operation:
        cycle = itertools.cycle(places)
        return lambda: operation(next(cycle))

    async def items_now() -> None:
        assert len([entry async for entry in scope.items("key_*")]) == KEYS

    async def items_then(revision: int) -> None:
        assert len([entry async for entry in scope.as_of(revision).items("key_*")]) == KEYS

    async def one_then(revision: int) -> None:
        assert await scope.as_of(revision).get("key_7") is not None

    return {
        "items, now": items_now,
        "raw multi-get, now": lambda: _counted(client, None),
        "as_of(…).items": at_places(items_then),
        "raw multi-get as of then": at_places(lambda revision: _counted(client, revision)),
        "as_of(…).get": at_places(one_then),
    }


async def _counted(client: RawClient, up_to: int | None) -> None:
    """The cheapest a client can be: count the answers, decode none."""
    question = {"multi_last": [_EVERYTHING], "batch": KEYS + 1, **({} if up_to is None else {"up_to_seq": up_to})}
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(_DIRECT, orjson.dumps(question), reply=inbox)
    count = 0
    while not (await subscription.next_msg(PATIENCE)).headers.get("Status"):  # type: ignore[union-attr]
        count += 1
    await subscription.unsubscribe()
    assert count >= KEYS


async def history(here: Surroundings) -> Table:
    """A key with ten events, spread over a log that is about others."""
    size = here.scale(1_000_000, 60_000)
    async with here.raw() as client, here.agent() as agent:
        await _grow(agent.memory, size)
        scope = agent.memory.session(_SCOPE.id)
        stream = client.jetstream(timeout=PATIENCE)
        subject = Subjects(NAMESPACE).memory(_SCOPE, "rare")

        async def raw(heard: str) -> None:
            """By nats-py: a consumer of its own each time, as one would for a single look."""
            config = ConsumerConfig(filter_subject=heard, ack_policy=AckPolicy.NONE, mem_storage=True)
            info = await stream.add_consumer(LOG, config)
            subscription = await stream.pull_subscribe_bind(info.name, LOG)
            assert len([orjson.loads(each.data) for each in await subscription.fetch(_RARE, PATIENCE)]) == _RARE
            await subscription.unsubscribe()
            await stream.delete_consumer(LOG, info.name)

        async def ours() -> None:
            assert len([event async for event in scope.history("rare")]) == _RARE

        async def everywhere() -> None:
            assert len([event async for event in agent.memory.history("rare")]) == _RARE

        async def newest() -> None:
            assert len([event async for event in scope.history("rare", reverse=True, limit=1)]) == 1

        for number in range(_PLACES):
            await agent.memory.session(f"other-{number}").set("spread", VALUE)

        async def spread() -> None:
            assert len([event async for event in agent.memory.history("spread")]) == _PLACES

        contestants: dict[str, Operation] = {
            "raw consumer": lambda: raw(subject),
            "raw consumer, by a wildcard for the scope": lambda: raw(f"{NAMESPACE}.memory.*.*.rare"),
            "history": ours,
            "history, in all scopes": everywhere,
            f"history, in all scopes, of a key that {_PLACES} have": spread,
            "history, the newest event": newest,
        }
        found = await times(contestants, rounds=here.scale(12, 4), calls=here.scale(10, 5))
    table = Table(f"history of a key with {_RARE} events in a log of {size:,}", ("p50 ms", "p99 ms"))
    baseline = found["raw consumer"]
    for name, one in found.items():
        targets = [Target(one.p50 * 1000, "<", 50, "ms")] if name.startswith("history") else []
        table.add(name, one.p50 * 1000, one.p99 * 1000, ratio=one.ratio_to(baseline), targets=targets)
    return table


async def _grow(memory: Memory, size: int) -> None:
    """Write, in atomic batches, until the log is so long."""
    scope = memory.session(_SCOPE.id)
    last = (await memory.as_of(timedelta(0)).moment()).revision
    if not last:
        last = await scope.set_many({f"key_{number}": VALUE for number in range(KEYS)})
    every, rare = size // _RARE, 0
    for batch in itertools.count(last // _BATCH):
        if last >= size:
            return
        first = batch * (_BATCH // _SHARE)
        ours = {f"key_{number % KEYS}": VALUE for number in range(first, first + _BATCH // _SHARE)}
        if rare < _RARE and last >= rare * every:
            ours["rare"] = VALUE
            rare += 1
        await scope.set_many(ours)
        rest = _BATCH - len(ours)
        last = await memory.set_many(
            {f"other_{number % _OTHERS}": VALUE for number in range(batch * rest, (batch + 1) * rest)}, scope="global"
        )
