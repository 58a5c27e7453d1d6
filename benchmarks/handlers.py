"""Handlers: how long a change takes to reach one, and how many it handles a second."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from nats.aio.msg import Msg

from agentfield import Agent, Event
from benchmarks.consuming import raw_consumer
from benchmarks.measuring import Span, rates, times
from benchmarks.report import Table, Target
from benchmarks.surroundings import NAMESPACE, PATIENCE, PAYLOAD, RAW, VALUE, Surroundings, raw_stream

_KEYS = 1000
_FILTER = f"{NAMESPACE}.memory.global.global.event.>"


async def latency(here: Surroundings) -> Table:
    """From ``set`` to the handler's first line, against a publish and an ordered consumer's callback by nats-py."""
    agent = Agent("bench", nats_url=here.url, namespace=NAMESPACE)
    arrived = asyncio.Event()

    @agent.memory.on_change("ping_*")
    async def react(event: Event) -> None:
        arrived.set()

    async def callback(message: Msg) -> None:
        arrived.set()

    async with here.raw() as client, agent:
        await raw_stream(client)
        stream = client.jetstream(timeout=PATIENCE)
        subscription = await stream.subscribe("raw.ping.>", stream=RAW, ordered_consumer=True, cb=callback)

        async def ours() -> None:
            arrived.clear()
            await agent.memory.set("ping_1", VALUE, scope="global")
            await arrived.wait()

        async def raw() -> None:
            arrived.clear()
            await stream.publish("raw.ping.1", PAYLOAD)
            await arrived.wait()

        found = await times({"raw": raw, "ours": ours}, rounds=here.scale(30, 6), calls=here.scale(40, 25))
        await subscription.unsubscribe()
    table = Table("from set to handler, against a raw ordered consumer", ("p50 ms", "p99 ms"))
    raw_times, our_times = found["raw"], found["ours"]
    table.add("raw publish → ordered consumer", raw_times.p50 * 1000, raw_times.p99 * 1000, ratio=1.0)
    ratio = our_times.ratio_to(raw_times)
    targets = [Target(ratio, "≤", 2, "× raw")]
    table.add("set → on_change", our_times.p50 * 1000, our_times.p99 * 1000, ratio=ratio, targets=targets)
    table.remarks.append("Both end when the acknowledgement and the event have arrived, whichever comes later.")
    return table


async def handled(here: Surroundings) -> Table:
    """A handler with a backlog, against a raw pull consumer that decodes the same events and does nothing else."""
    amount = here.scale(40_000, 10_000)
    numbers = itertools.count()
    async with here.raw() as client, here.agent() as writer:
        for begin in range(0, amount, _KEYS):
            await writer.memory.set_many(
                {f"event_{key}": {**VALUE, "number": begin + key} for key in range(_KEYS)}, scope="global"
            )
        stream = client.jetstream(timeout=PATIENCE)

        async def ours() -> Span:
            agent = Agent(f"bench-{next(numbers)}", nats_url=here.url, namespace=NAMESPACE)
            done = asyncio.get_running_loop().create_future()
            count, begun = 0, 0.0

            @agent.memory.on_change("event_*", start="all")
            async def handle(event: Any) -> None:
                nonlocal count, begun
                if not count:
                    begun = time.perf_counter()
                count += 1
                if count == amount:
                    done.set_result(time.perf_counter())

            async with agent:
                ended: float = await done
            return Span(amount, ended - begun)

        found = await rates({"raw": raw_consumer(stream, _FILTER, amount), "ours": ours}, rounds=here.scale(6, 3))
    table = Table(f"{amount:,} events behind: handled in one process", ("events a second",))
    table.add("raw pull consumer, decodes only", found["raw"].typical, ratio=1.0)
    ratio = found["ours"].ratio_to(found["raw"])
    table.add(
        "on_change handler",
        found["ours"].typical,
        ratio=ratio,
        targets=[Target(found["ours"].typical, "≥", 10_000, "a second"), Target(ratio, "≥", 0.5, "× raw")],
    )
    return table
