"""Sixty-four at once: how much of plain NATS's rate is left when many tasks share one connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.header import encode_event
from agentfield.scope import GLOBAL
from agentfield.subject import Subjects
from benchmarks.measuring import Burst, Span, rates
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, PAYLOAD, VALUE, Surroundings, raw_stream

TASKS = 64
_LIMIT = 0.85


async def concurrent(here: Surroundings) -> Table:
    """Sets against publishes with acknowledgement, gets through four scopes against direct gets."""
    each = here.scale(100, 30)
    async with here.raw() as client, here.agent() as agent:
        await raw_stream(client)
        stream = client.jetstream(timeout=PATIENCE)
        memory = agent.memory
        for number in range(TASKS):
            await memory.set(f"shared_{number}", VALUE, scope="global")
        writer = Writer(agent="bench", execution_id=new_id(), workflow_id="wf-1", session_id="user-42")
        into_log = [Subjects(NAMESPACE).memory(GLOBAL, f"raw_{n}") for n in range(TASKS)]
        direct = [f"$JS.API.DIRECT.GET.{LOG}.{Subjects(NAMESPACE).memory(GLOBAL, f'shared_{n}')}" for n in range(TASKS)]

        async def publish(task: int) -> None:
            await stream.publish(f"raw.{task}", PAYLOAD)

        async def publish_into_log(task: int) -> None:
            headers = encode_event(event_id=new_id(), operation="set", writer=writer)
            await stream.publish(into_log[task], PAYLOAD, headers=headers)

        async def store(task: int) -> None:
            await memory.set(f"own_{task}", VALUE)

        async def direct_get(task: int) -> None:
            await client.request(direct[task], timeout=PATIENCE)

        async def get(task: int) -> None:
            await memory.get(f"shared_{task}")

        async def get_in_one(task: int) -> None:
            await memory.get(f"shared_{task}", scope="global")

        rounds = here.scale(12, 4)
        writing = await rates(
            {"raw": _burst(publish, each), "log": _burst(publish_into_log, each), "set": _burst(store, each)},
            rounds=rounds,
        )
        reading = await rates(
            {"raw": _burst(direct_get, each), "get": _burst(get, each), "one": _burst(get_in_one, each)}, rounds=rounds
        )
    table = Table(f"{TASKS} tasks at once, on one connection", ("a second",))
    table.add("raw publish + ack", writing["raw"].typical, ratio=1.0)
    ratio = writing["log"].ratio_to(writing["raw"])
    table.add("raw publish + ack of an event into the log, which fills a bucket", writing["log"].typical, ratio=ratio)
    ratio = writing["set"].ratio_to(writing["raw"])
    table.add("set", writing["set"].typical, ratio=ratio, targets=[Target(ratio, "≥", _LIMIT, "× raw")])
    table.add("raw direct get", reading["raw"].typical, ratio=1.0)
    ratio = reading["get"].ratio_to(reading["raw"])
    table.add(
        "get, through four scopes", reading["get"].typical, ratio=ratio, targets=[Target(ratio, "≥", _LIMIT, "× raw")]
    )
    ratio = reading["one"].ratio_to(reading["raw"])
    table.add("get, in one scope", reading["one"].typical, ratio=ratio, targets=[Target(ratio, "≥", _LIMIT, "× raw")])
    return table


def _burst(operation: Callable[[int], Awaitable[object]], each: int) -> Burst:
    async def one(task: int) -> None:
        for _ in range(each):
            await operation(task)

    async def burst() -> Span:
        begun = time.perf_counter()
        await asyncio.gather(*(one(task) for task in range(TASKS)))
        return Span(TASKS * each, time.perf_counter() - begun)

    return burst
