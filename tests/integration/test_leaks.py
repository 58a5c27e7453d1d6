"""Nothing is left on the server by those who come and go, but the durable consumers of the handlers that there are."""

import asyncio

from agentfield import Agent, Event, Memory, connect
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from tests.support import NatsServer, eventually

ROUNDS = 200
"""Of five starts and stops each."""
AT_ONCE = 8
NAMES = ("one", "other", "third")


async def consumers(fabric: Fabric) -> list[str]:
    """The names of all consumers of the namespace."""
    found: list[str] = []
    for spec in fabric.topology.streams:
        found += (await api(fabric.connection, f"CONSUMER.NAMES.{spec.name}")).get("consumers") or []
    return sorted(found)


async def nothing(_: Event) -> None:
    """Handle an event."""


async def test_a_thousand_starts_and_stops_leave_no_consumer_behind(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric
) -> None:
    await memory.set_many({f"k_{number}": number for number in range(20)})
    turns = asyncio.Semaphore(AT_ONCE)
    starts = 0

    def begun() -> None:
        nonlocal starts
        starts += 1

    async def come_and_go(number: int) -> None:
        async with turns:
            agent = Agent(NAMES[number % len(NAMES)], nats_url=server.url, namespace=namespace)
            agent.memory.on_change("k_*", name="react")(nothing)
            async with agent:
                begun()
                await agent.memory.set(f"k_{number}", number)
            async with connect(server.url, namespace=namespace) as mine:
                begun()
                async for _ in mine.watch("k_*", start="all"):  # left in the middle
                    begun()
                    break
                following = asyncio.create_task(follow(mine))  # cancelled while it waits
                begun()
                await asyncio.sleep(number % 10 / 1000)  # wherever it has come to by then
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                begun()
                assert [event async for event in mine.history("k_1", limit=1)]

    await asyncio.gather(*(come_and_go(number) for number in range(ROUNDS)))
    assert starts == 5 * ROUNDS
    in_use = ["expiry", *(f"handler-{name}-react" for name in NAMES)]

    async def nothing_else() -> bool:
        assert await consumers(fabric) == in_use
        return True

    await eventually(nothing_else, within=10)


async def follow(memory: Memory) -> None:
    """Watch until cancelled."""
    async for _ in memory.watch("k_*", start="all"):
        pass
