"""A pinned consumer: one active instance, what is unfinished comes again in order, and only floors are acknowledged."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest

from agentfield import AccessDeniedError
from agentfield.fabric.consumers.consumer import GROUP, PIN_TIMEOUT, PinnedConsumer
from agentfield.fabric.consumers.consuming import ConsumerSpec, Start
from agentfield.fabric.consumers.progress import WINDOW, Slot
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from tests.support import NatsServer, eventually
from tests.support.consuming import Instance, delete, floor, info, instance, spec
from tests.support.events import subject, write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]


def names(first: int, last: int) -> list[str]:
    return [f"k.{number}" for number in range(first, last + 1)]


def have_handled(instances: Sequence[Instance[PinnedConsumer]], last: int) -> bool:
    return {sequence for each in instances for sequence in each.handled} >= set(range(1, last + 1))


# -- the durable itself -----------------------------------------------------------------------------------------------


async def test_ensuring_again_changes_nothing(fabric: Fabric) -> None:
    await PinnedConsumer(fabric.log, spec(fabric)).ensure()
    before = await info(fabric)
    other = spec(fabric, start="new")
    await PinnedConsumer(fabric.log, other).ensure()
    after = await info(fabric)
    assert after["config"] == before["config"], "where a consumer began is not for a later version to change"
    assert after["created"] == before["created"]


async def test_new_filters_take_effect_and_progress_is_kept(fabric: Fabric) -> None:
    async with instance(fabric) as running:
        await write_many(fabric, names(1, 10))
        await running.reached(10)
        await eventually(lambda: has_floor(fabric, 10))
    wider = ConsumerSpec("consumer", (subject(fabric, "k.>"), subject(fabric, "j.>")), "all")
    consumer = PinnedConsumer(fabric.log, wider)
    await consumer.ensure()
    assert sorted((await info(fabric))["config"]["filter_subjects"]) == sorted(wider.filters)
    running = Instance(consumer)
    try:
        await write_many(fabric, ["j.11", "k.12"])
        await running.reached(12)
        assert running.handled == [11, 12]
    finally:
        await running.end()
        await consumer.leave()


async def has_floor(fabric: Fabric, sequence: int) -> bool:
    return await floor(fabric) == sequence


# -- handing out ------------------------------------------------------------------------------------------------------


async def test_every_event_comes_once_in_order_and_the_floor_follows(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 500))
    async with instance(fabric) as running:
        await running.reached(500)
        await write_many(fabric, [*names(501, 3000), "other.key"])
        await running.reached(3000)
        await eventually(lambda: has_floor(fabric, 3000))
    assert running.handled == list(range(1, 3001))


async def test_only_what_all_before_it_is_done_with_is_acknowledged(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 10))
    async with instance(fabric, hold=True) as running:
        await eventually(lambda: len(running.held) == 10)
        for sequence in (2, 3, 5, 10):
            running.consumer.done(sequence)
        running.consumer.done(1)
        await eventually(lambda: has_floor(fabric, 3))
        running.consumer.done(4)
        await eventually(lambda: has_floor(fabric, 5))
        for sequence in (9, 8, 7, 6):
            running.consumer.done(sequence)
        await eventually(lambda: has_floor(fabric, 10))


async def test_what_was_not_finished_comes_again_in_order_before_anything_newer(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await write_many(fabric, names(1, 20))
    async with instance(fabric, hold=True) as first:
        await eventually(lambda: len(first.held) == 20)
        for sequence in (1, 2, 3, 7, 8):
            first.consumer.done(sequence)
        await eventually(lambda: has_floor(fabric, 3))
        async with instance(await open_fabric(server)) as second:
            await write_many(fabric, names(21, 30))
            await first.end()
            await second.reached(30)
    assert second.activations == [3]
    assert second.handled == list(range(4, 31))


async def test_no_more_than_a_window_is_taken_in_and_the_pin_is_kept_while_it_is_full(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await write_many(fabric, names(1, 2500))
    async with instance(fabric, hold=True) as slow, instance(await open_fabric(server)) as standby:
        await eventually(lambda: len(slow.held) == WINDOW)
        full = asyncio.get_running_loop().time()
        await eventually(  # much longer than an instance may be silent
            lambda: asyncio.get_running_loop().time() > full + 2.5 * PIN_TIMEOUT, within=60
        )
        assert len(slow.held) == WINDOW
        slow.hold = False
        slow.finish()
        await slow.reached(2500)
        await eventually(lambda: has_floor(fabric, 2500))
    assert slow.activations == [0]
    assert slow.handled == list(range(1, 2501))
    assert (standby.handled, standby.activations) == ([], [])


async def test_a_loop_that_stood_still_gives_way_and_repeats_nothing_it_knows_as_done(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await write_many(fabric, names(1, 50))
    async with instance(fabric, hold=True) as alone:
        await eventually(lambda: len(alone.held) == 50)
        alone.consumer.done(1)
        alone.consumer.done(3)
        stand_still(PIN_TIMEOUT + 1.5)
        alone.held.remove(1)
        alone.held.remove(3)
        alone.hold = False
        for sequence in alone.held:
            alone.consumer.done(sequence)
        await write_many(fabric, names(51, 60))
        await alone.reached(60)
        await eventually(lambda: has_floor(fabric, 60))
    assert len(alone.activations) == 2
    assert alone.handled == list(range(51, 61)), "what was done before the pause is known as done after it"
    assert set(alone.skipped) <= set(range(1, 51))


def slot_of(instance: Instance[PinnedConsumer], sequence: int) -> Slot:
    slot = instance.consumer._progress.slot(sequence)
    assert slot is not None
    return slot


def stand_still(seconds: float) -> None:
    """What a handler does to its loop when it computes for long."""
    time.sleep(seconds)


# -- taking over ------------------------------------------------------------------------------------------------------


async def test_leaving_hands_over_at_once(fabric: Fabric, server: NatsServer, open_fabric: OpenFabric) -> None:
    async with instance(fabric, hold=True) as active, instance(await open_fabric(server), hold=True) as standby:
        await write_many(fabric, names(1, 5))
        await eventually(lambda: active.held or standby.held)
        if standby.held:  # its pull came first
            active, standby = standby, active
        active.hold = standby.hold = False
        active.finish()
        await active.reached(5)
        await active.consumer.drain()
        await active.end()
        await active.consumer.leave()
        left = asyncio.get_running_loop().time()
        await write(fabric, "k.6")
        await standby.reached(6, within=2)
        assert asyncio.get_running_loop().time() - left < PIN_TIMEOUT / 2
    assert active.handled == [1, 2, 3, 4, 5]
    assert standby.handled == [6]


async def test_a_pin_that_comes_in_the_moment_of_the_end_is_handed_over_too(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    async with instance(fabric) as leaving:
        await eventually(lambda: waits(fabric))
        await leaving.end()
        await write(fabric, "k.1")
        async with instance(await open_fabric(server)) as standby:
            await leaving.consumer.leave()
            await standby.reached(1, within=PIN_TIMEOUT / 2)
    assert leaving.handled == []


async def waits(fabric: Fabric) -> bool:
    return int((await info(fabric))["num_waiting"]) > 0


async def test_draining_finishes_what_is_held_and_hands_out_nothing_more(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 50))
    async with instance(fabric, hold=True) as running:
        await eventually(lambda: len(running.held) == 50)
        draining = asyncio.create_task(running.consumer.drain())
        await write_many(fabric, names(51, 60))
        pulls = running.consumer._pulls.count
        await eventually(lambda: running.consumer._pulls.count > pulls + 1, what="pulling goes on, for the pin's sake")
        assert not draining.done()
        running.finish()
        await draining
        assert running.handled == list(range(1, 51))
        await eventually(lambda: has_floor(fabric, 50))


async def test_a_reset_by_somebody_else_confuses_neither_order_nor_acknowledgements(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 100))
    async with instance(fabric, hold=True) as running:
        await eventually(lambda: len(running.held) == 100)
        for sequence in range(1, 31):
            running.consumer.done(sequence)
        await eventually(lambda: has_floor(fabric, 30))
        await api(fabric.connection, f"CONSUMER.RESET.{fabric.log.stream}.consumer")  # a woken standby would do that

        async def delivered_again() -> bool:
            return bool((await info(fabric))["delivered"]["consumer_seq"] == 70)  # counted anew

        await eventually(delivered_again)
        running.held = [sequence for sequence in running.held if sequence > 30]
        running.hold = False
        running.finish()
        await eventually(lambda: has_floor(fabric, 100))
        await write_many(fabric, names(101, 110))
        await running.reached(110)
        await eventually(lambda: has_floor(fabric, 110))
    assert running.handled == list(range(31, 111))
    assert running.activations == [0]


async def test_an_acknowledgement_from_before_a_takeover_stops_nobody(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    # The first instance's deliveries are numbered far beyond the second's, which begin anew. If the server believes one
    # of its acknowledgements now, it takes the second's for old ones until they have caught up.
    await write_many(fabric, names(1, 1200))
    async with instance(fabric) as first:
        await first.reached(1200)
        await eventually(lambda: has_floor(fabric, 1200))
        first.hold = True
        await write_many(fabric, names(1201, 1210))
        await eventually(lambda: len(first.held) == 10)
        late = slot_of(first, 1205).reply
        await first.end()
        async with instance(await open_fabric(server), hold=True) as second:
            await eventually(lambda: len(second.held) == 10, within=2 * PIN_TIMEOUT)
            await fabric.connection.publish(late, b"+ACK")
            await eventually(lambda: has_floor(fabric, 1205))
            second.hold = False
            second.finish()
            await write_many(fabric, names(1211, 2500))
            await second.reached(2500, within=30)
            await eventually(lambda: has_floor(fabric, 2500))
    assert second.handled == list(range(1201, 2501))


# -- bad weather ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["all", "new"])
async def test_a_consumer_that_an_operator_deletes_is_made_again_where_it_was(
    fabric: Fabric, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    await write(fabric, "k.before")
    async with instance(fabric, start=start) as running:
        await delete(fabric)  # before anything has been handled
        await write_many(fabric, names(2, 10))
        await running.reached(10)
        await delete(fabric)
        await write_many(fabric, names(11, 20))
        await running.reached(20)
        await eventually(lambda: has_floor(fabric, 20))
    assert running.handled == list(range(1 if start == "all" else 2, 21))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.endswith("to go on after revision 10") for text in warnings] == [False, True]


async def test_deleting_it_under_two_instances_loses_nothing_either(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    other = await open_fabric(server)
    async with instance(fabric, start="new") as one, instance(other, start="new") as two:
        for last in range(10, 60, 10):
            await write_many(fabric, names(last - 9, last))
            await eventually(partial(have_handled, (one, two), last), within=15)
            await delete(fabric)
    assert {*one.handled, *two.handled} == set(range(1, 51))


async def test_restarts_of_the_server_lose_and_repeat_nothing(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric, writer = await open_fabric(fresh_server), await open_fabric(fresh_server)
    async with instance(fabric) as running:
        for round in range(3):
            await write_many(writer, names(1, 300))
            await fresh_server.restart(gracefully=round != 1)
        await write(writer, "k.last")
        await running.reached(901, within=20)
        await eventually(lambda: has_floor(fabric, 901))
    assert running.handled == list(range(1, 902))


async def test_a_client_that_is_replaced_loses_and_repeats_nothing(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    writer = await open_fabric(server)
    async with instance(fabric) as running:
        for _ in range(3):
            await write_many(writer, names(1, 200))
            transport = fabric.connection.client._transport
            assert transport is not None
            transport.write(b"NONSENSE\r\n")
        await eventually(lambda: fabric.connection.state == "connected")
        await write(writer, "k.last")
        await running.reached(601, within=PIN_TIMEOUT / 2)  # nobody has to wait for our own former pin
    assert running.handled == list(range(1, 602))


async def test_permission_denied_is_told_when_preparing_and_outlived_when_running(
    start_server: Callable[..., NatsServer], namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(
        extra="""
        authorization { users: [
            {user: all, password: secret}
            {user: some, password: secret, permissions: {publish: {deny: ["$JS.API.CONSUMER.CREATE.>"]}}}
            {user: mute, password: secret, permissions: {publish: {deny: ["$JS.API.CONSUMER.RESET.>"]}}}
        ]}
        """
    )

    async def opened(user: str) -> Fabric:
        return await Fabric.open(server.url.replace("//", f"//{user}:secret@"), namespace=namespace, name=user)

    whole, some, mute = await opened("all"), await opened("some"), await opened("mute")
    try:
        async with asyncio.timeout(2):
            with pytest.raises(AccessDeniedError):
                await PinnedConsumer(some.log, spec(some)).ensure()
        await PinnedConsumer(whole.log, spec(whole)).ensure()
        await write(whole, "k.1")
        async with instance(mute) as running:
            await eventually(lambda: "RESET" in caplog.text)
            assert running.handled == []
        async with instance(whole) as running:
            await running.reached(1, within=3 * PIN_TIMEOUT)
    finally:
        for fabric in (whole, some, mute):
            await fabric.aclose()


async def test_an_operator_sees_what_it_is_and_who_is_active(fabric: Fabric) -> None:
    async with instance(fabric) as running:
        await write(fabric, "k.1")
        await running.reached(1)
        (group,) = (await info(fabric))["priority_groups"]
        assert group["group"] == GROUP
        assert group["pinned_client_id"] == running.consumer._handing.pin
