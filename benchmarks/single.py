"""One operation at a time: what a set costs above a publish, and a get above a direct get."""

from __future__ import annotations

from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.header import encode_event
from agentfield.scope import GLOBAL
from agentfield.subject import Subjects
from benchmarks.measuring import Operation, Times, times
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, PAYLOAD, VALUE, Surroundings, raw_stream

COLUMNS = ("p50 ms", "p99 ms")
_KEY = "ticket_42_sentiment"
_DIRECT = f"$JS.API.DIRECT.GET.{LOG}"


async def writing(here: Surroundings) -> Table:
    """``set`` against nats-py's publish and acknowledgement, bare and with the two headers that every event has."""
    async with here.raw() as client, here.agent() as agent:
        await raw_stream(client)
        stream = client.jetstream(timeout=PATIENCE)
        writer = Writer(agent="bench", execution_id=new_id(), workflow_id="wf-1", session_id="user-42")

        async def bare() -> None:
            await stream.publish(f"raw.{_KEY}", PAYLOAD)

        async def with_headers() -> None:
            headers = encode_event(event_id=new_id(), operation="set", writer=writer)
            await stream.publish(f"raw.{_KEY}", PAYLOAD, headers=headers)

        async def set_workflow() -> None:
            await agent.memory.set(_KEY, VALUE)

        async def set_global() -> None:
            await agent.memory.set(_KEY, VALUE, scope="global")

        contestants: dict[str, Operation] = {
            "raw publish + ack": bare,
            "raw publish + ack, with an event's headers": with_headers,
            "set, in a workflow": set_workflow,
            "set, global": set_global,
        }
        found = await times(contestants, rounds=here.scale(30, 6), calls=here.scale(60, 40))
    table = Table("set against a raw publish with its acknowledgement", COLUMNS)
    return _filled(table, found, {"set, in a workflow": 1.2, "set, global": 1.2})


async def reading(here: Surroundings) -> Table:
    """``get`` of a key that only the last of the four scopes has, against nats-py's direct get of one subject."""
    async with here.raw() as client, here.agent() as agent:
        await agent.memory.set(_KEY, VALUE, scope="global")
        subject = f"{_DIRECT}.{Subjects(NAMESPACE).memory(GLOBAL, _KEY)}"

        async def direct() -> None:
            await client.request(subject, timeout=PATIENCE)

        async def get_through_four() -> None:
            await agent.memory.get(_KEY)

        async def get_in_one() -> None:
            await agent.memory.get(_KEY, scope="global")

        contestants: dict[str, Operation] = {
            "raw direct get": direct,
            "get, through four scopes": get_through_four,
            "get, in one scope": get_in_one,
        }
        found = await times(contestants, rounds=here.scale(30, 6), calls=here.scale(100, 60))
    table = Table("get against one raw direct get", COLUMNS)
    return _filled(table, found, {"get, through four scopes": 1.5})


def _filled(table: Table, found: dict[str, Times], limits: dict[str, float]) -> Table:
    baseline = next(iter(found.values()))
    for name, one in found.items():
        ratio = one.ratio_to(baseline)
        targets = [Target(ratio, "≤", limits[name], "× raw")] if name in limits else []
        table.add(name, one.p50 * 1000, one.p99 * 1000, ratio=ratio, targets=targets)
    return table
