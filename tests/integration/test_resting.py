"""An instance that has had nothing to do for a while costs nothing, and goes on with the next event as if it had."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agentfield.fabric.consumers import turn
from agentfield.fabric.consumers.consumer import PIN_TIMEOUT, PinnedConsumer
from agentfield.fabric.consumers.pulling import Pulls
from agentfield.fabric.fabric import Fabric
from tests.support import NatsServer, eventually
from tests.support.consuming import Instance, info, instance
from tests.support.events import write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]
GONE = PIN_TIMEOUT + 4


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "_REST", 0.3)


async def is_pinned(fabric: Fabric) -> bool:
    return bool((await info(fabric))["priority_groups"][0].get("pinned_client_id"))


async def nobody_is_pinned(fabric: Fabric) -> bool:
    return not await is_pinned(fabric)


async def rests(fabric: Fabric, running: Instance[PinnedConsumer]) -> None:
    """Wait until it has noted where it stands, and the server has given up on its pin."""
    await eventually(lambda: running.consumer._rest is not None)
    await eventually(lambda: nobody_is_pinned(fabric), within=GONE)


@asynccontextmanager
async def rested(fabric: Fabric) -> AsyncIterator[Instance[PinnedConsumer]]:
    """An instance that has handled five events, and none for a while."""
    async with instance(fabric) as running:
        await write_many(fabric, [f"k.{number}" for number in range(1, 6)])
        await running.reached(5)
        await rests(fabric, running)
        yield running


async def test_it_goes_on_with_the_next_event_which_is_sent_once(fabric: Fabric) -> None:
    async with rested(fabric) as running:
        assert await write(fabric, "nobody.1") == 6
        await write_many(fabric, ["k.1", "k.2"])
        await running.reached(8)
        assert await is_pinned(fabric)
        assert running.handled == [1, 2, 3, 4, 5, 7, 8]
        assert running.activations == [0]
        await eventually(lambda: floor_is(fabric, 8))
        assert (await info(fabric))["delivered"]["consumer_seq"] == 5 + 2


async def floor_is(fabric: Fabric, sequence: int) -> bool:
    return int((await info(fabric))["ack_floor"]["stream_seq"]) == sequence


async def test_it_does_so_again_and_again(fabric: Fabric) -> None:
    async with rested(fabric) as running:
        await write(fabric, "k.1")
        await running.reached(6)
        await rests(fabric, running)
        await write(fabric, "k.1")
        await running.reached(7)
        assert running.activations == [0]


async def test_an_event_that_comes_before_its_pin_has_ended_waits_for_nothing(fabric: Fabric) -> None:
    async with instance(fabric) as running:
        await write(fabric, "k.1")
        await running.reached(1)
        await eventually(lambda: running.consumer._rest is not None)
        assert await is_pinned(fabric)
        await write(fabric, "k.2")
        await running.reached(2, within=PIN_TIMEOUT / 2)
        assert running.activations == [0]


async def test_it_looks_again_where_it_stands_if_another_instance_was_active_meanwhile(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    elsewhere = await open_fabric(server)
    async with rested(fabric) as running:
        await running.end()
        async with instance(elsewhere) as other:
            await write(fabric, "k.6")
            await other.reached(6)
            await eventually(lambda: floor_is(fabric, 6))
        again: Instance[PinnedConsumer] = Instance(running.consumer)
        try:
            await write(fabric, "k.7")
            await again.reached(7)
            assert (again.handled, again.activations) == ([7], [6])
        finally:
            await again.end()


async def test_what_another_instance_left_unfinished_meanwhile_comes_before_the_next_event(fabric: Fabric) -> None:
    async with rested(fabric) as running:
        await running.end()
        await running.consumer._pulls.close()
        await _taken_by_one_that_dies(fabric)
        await write(fabric, "k.7")
        again: Instance[PinnedConsumer] = Instance(running.consumer)
        try:
            await again.reached(7, within=GONE)
            assert (again.handled, again.activations) == ([6, 7], [5])
        finally:
            await again.end()


async def _taken_by_one_that_dies(fabric: Fabric) -> None:
    """Have one event written, and received by an instance that does nothing after that."""
    pulls = Pulls(fabric.connection, fabric.log.stream, "consumer")
    await pulls.open_inbox()
    await pulls.request(pin="", batch=1, expires=10)
    await write(fabric, "k.6")
    assert (await pulls.receive(5)).headers["Nats-Pin-Id"]
    await pulls.close()


async def test_an_event_that_is_unfinished_keeps_it_active(fabric: Fabric) -> None:
    async with instance(fabric, hold=True) as running:
        await write(fabric, "k.1")
        await eventually(lambda: running.held == [1])
        pin = running.consumer._handing.pin
        began = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() > began + PIN_TIMEOUT + 1, within=GONE + 4)
        assert running.consumer.active
        assert running.consumer._handing.pin == pin
