"""A durable consumer that begins with present values: whatever breaks off in their midst goes on there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from agentfield.fabric.consumers.consumer import PIN_TIMEOUT, PinnedConsumer
from agentfield.fabric.fabric import Fabric
from tests.support import NatsServer, eventually
from tests.support.consuming import delete, floor, info, instance, spec
from tests.support.events import write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]

KEYS = 300


async def overwritten(fabric: Fabric) -> None:
    """So many keys, each written twice: revisions 301 to 600 are present."""
    await write_many(fabric, [f"k.{number}" for number in range(KEYS)] * 2)


PRESENT = list(range(KEYS + 1, 2 * KEYS + 1))


async def test_only_present_values_come_before_the_changes(fabric: Fabric) -> None:
    await overwritten(fabric)
    async with instance(fabric, start="current") as running:
        await running.reached(600)
        await write_many(fabric, ["k.1", "k.1"])
        await running.reached(602)
    assert running.handled == [*PRESENT, 601, 602]
    assert await floor(fabric) == 602


async def test_after_a_crash_in_their_midst_another_goes_on_there_and_gives_no_old_values(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await overwritten(fabric)
    async with instance(fabric, start="current", hold=True) as first:
        await eventually(lambda: len(first.held) == KEYS)
        for sequence in PRESENT[:100]:
            first.consumer.done(sequence)
        saved = await eventually(lambda: has_floor(fabric, PRESENT[99]))
        assert saved
        await first.end()  # and nobody says that it is gone
        await write_many(fabric, ["k.5", "k.200", "k.200"])
        async with instance(await open_fabric(server), start="current") as second:
            await second.reached(603, within=3 * PIN_TIMEOUT)
    assert second.handled == [*PRESENT[100:], 601, 602, 603]


async def has_floor(fabric: Fabric, sequence: int) -> bool:
    return await floor(fabric) == sequence


async def test_what_is_done_out_of_turn_is_known_when_the_pin_comes_back(fabric: Fabric) -> None:
    await overwritten(fabric)
    async with instance(fabric, start="current", hold=True) as running:
        await eventually(lambda: len(running.held) == KEYS)
        for sequence in PRESENT[50:100]:
            running.consumer.done(sequence)
        transport = fabric.connection.client._transport
        assert transport is not None
        lost = asyncio.Event()
        fabric.connection.on_state(lambda _: lost.set())
        transport.write(b"NONSENSE\r\n")  # the server hangs up
        async with asyncio.timeout(10):
            await lost.wait()
        running.held = [sequence for sequence in running.held if sequence not in PRESENT[50:100]]
        running.finish()
        running.hold = False
        await write(fabric, "k.1")
        await running.reached(601, within=2 * PIN_TIMEOUT)
    assert running.handled == [*PRESENT[:50], *PRESENT[100:], 601], "a value was given twice, or not at all"


async def test_a_consumer_that_is_deleted_in_their_midst_is_made_again_with_its_seam(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    await overwritten(fabric)
    async with instance(fabric, start="current", hold=True) as running:
        await eventually(lambda: len(running.held) == KEYS)
        for sequence in PRESENT[:100]:
            running.consumer.done(sequence)
        await delete(fabric)
        await write_many(fabric, ["k.1", "k.299"])
        running.held = [sequence for sequence in running.held if sequence not in PRESENT[:100]]
        running.finish()
        running.hold = False
        await running.reached(602, within=2 * PIN_TIMEOUT)
        assert (await info(fabric))["config"]["metadata"]["seam"] == "600"
    assert running.handled == [*PRESENT[100:], 601, 602]
    assert any(record.levelno == logging.WARNING and "made again" in record.getMessage() for record in caplog.records)


async def test_instances_that_begin_at_the_same_time_agree_on_one_seam(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabrics = [fabric, *[await open_fabric(server) for _ in range(3)]]
    consumers = [PinnedConsumer(each.log, spec(each, start="current")) for each in fabrics]

    async def begin(consumer: PinnedConsumer) -> None:
        await write(fabric, "k.1")
        await consumer.ensure()

    await asyncio.gather(*(begin(consumer) for consumer in consumers))
    seam = int((await info(fabric))["config"]["metadata"]["seam"])
    assert {consumer._durable.seam for consumer in consumers} == {seam}


async def test_a_restart_of_the_server_in_their_midst_repeats_and_loses_none(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server)
    await overwritten(fabric)
    async with instance(fabric, start="current", hold=True) as running:
        await eventually(lambda: len(running.held) == KEYS)
        held, running.held = running.held, running.held[:150]
        running.finish()
        await fresh_server.restart(gracefully=False)
        running.held = held[150:]
        running.finish()
        running.hold = False
        await write(fabric, "k.1")
        await running.reached(601, within=2 * PIN_TIMEOUT)
    assert running.handled == [*PRESENT, 601]
