"""What lies far behind is read through one reader a filter: in order, without a gap, and whoever takes over goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn

import pytest

from agentfield import AccessDeniedError, ResyncRequired
from agentfield.codec import Record
from agentfield.fabric.backlog import FAR, backlog
from agentfield.fabric.consumers import feeding
from agentfield.fabric.consumers.consumer import PIN_TIMEOUT, PinnedConsumer
from agentfield.fabric.consumers.consuming import Start
from agentfield.fabric.consumers.durable import GROUP
from agentfield.fabric.consumers.live import LiveConsumer
from agentfield.fabric.consumers.progress import WINDOW
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from tests.support import NatsServer, eventually
from tests.support.consuming import Instance, delete, floor, info, instance, spec
from tests.support.events import shorten, subject, write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]
HEARD = ("a.>", "b.>", "c.*.d")


def names(first: int, last: int) -> list[str]:
    """Events of three filters, in turn but not evenly, and of none."""
    kinds = ("a.{}", "b.{}.x", "a.{}", "c.{}.d", "nobody.{}")
    return [kinds[number % 5].format(number % 97) for number in range(first, last + 1)]


def heard(first: int, last: int) -> list[int]:
    return [number for number in range(first, last + 1) if number % 5 != 4]


async def has_floor(fabric: Fabric, sequence: int) -> bool:
    return await floor(fabric) == sequence


async def readers(fabric: Fabric) -> list[str]:
    answer = await api(fabric.connection, f"CONSUMER.NAMES.{fabric.log.stream}", {})
    return [name for name in answer["consumers"] or [] if name != "consumer"]


@pytest.fixture
async def feeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each walk over a backlog began; so that a test can tell that there was one."""
    begun: list[int] = []

    async def noted(log: object, filters: object, start: int, stop: int) -> AsyncIterator[list[Record]]:
        begun.append(start)
        async with aclosing(backlog(log, filters, start, stop)) as blocks:  # type: ignore[arg-type]
            async for records in blocks:
                yield records

    monkeypatch.setattr(feeding, "backlog", noted)
    return begun


async def test_every_event_of_each_filter_comes_once_in_order_up_to_the_end(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 3000))
    filters = [subject(fabric, each) for each in HEARD]
    taken: list[int] = []
    async with aclosing(backlog(fabric.log, filters, 11, 2500)) as blocks:
        async for records in blocks:
            taken += [record.sequence for record in records]
    assert taken == heard(11, 2500)
    assert await readers(fabric) == []


async def test_whoever_leaves_early_leaves_no_reader_behind(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 3000))
    filters = [subject(fabric, each) for each in HEARD]
    async with aclosing(backlog(fabric.log, filters, 1, 3000)) as blocks:
        async for records in blocks:
            assert records[0].sequence == 1
            break
    assert await readers(fabric) == []


async def test_what_was_taken_out_of_the_log_before_it_was_read_is_an_error(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 3000))
    first = await shorten(fabric, keep=1000)
    with pytest.raises(ResyncRequired) as raised:
        async for _ in backlog(fabric.log, [subject(fabric, each) for each in HEARD], 1, 3000):
            pass
    assert (raised.value.requested, raised.value.first_available) == (1, first)
    assert await readers(fabric) == []


async def test_a_consumer_far_behind_hands_out_all_in_order_and_goes_on_live(fabric: Fabric, feeds: list[int]) -> None:
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD) as running:
        await running.reached(4000)
        await eventually(lambda: has_floor(fabric, 4000))
        await write_many(fabric, names(4001, 4100))
        await running.reached(4100)
        await eventually(lambda: has_floor(fabric, 4100))
        assert await readers(fabric) == []
    assert running.handled == heard(1, 4100)
    assert running.skipped == []
    assert feeds == [1, 4001]


@pytest.mark.parametrize("start", ["new", datetime(2020, 1, 1, tzinfo=UTC), 3])
async def test_wherever_a_consumer_began_it_catches_up(fabric: Fabric, feeds: list[int], start: Start) -> None:
    await PinnedConsumer(fabric.log, spec(fabric, *HEARD, start=start)).ensure()
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD) as running:
        await running.reached(4000)
        await eventually(lambda: has_floor(fabric, 4000))
    assert running.handled == heard(3 if start == 3 else 1, 4000)
    assert len(running.activations) == 1
    assert len(feeds) == 2


async def test_one_that_the_server_does_not_move_catches_up_by_itself(fabric: Fabric, feeds: list[int]) -> None:
    config: dict[str, object] = {"durable_name": "consumer", "ack_policy": "all", "deliver_policy": "new"}
    config |= {"priority_groups": [GROUP], "priority_policy": "pinned_client", "filter_subjects": ["old"]}
    await api(fabric.connection, f"CONSUMER.DURABLE.CREATE.{fabric.log.stream}.consumer",
              {"stream_name": fabric.log.stream, "config": config})  # fmt: skip
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD) as running:
        await running.reached(4000)
    assert feeds == []


async def test_few_events_are_not_worth_any_reader(fabric: Fabric, feeds: list[int]) -> None:
    await write_many(fabric, names(1, FAR))
    async with instance(fabric, *HEARD) as running:
        await running.reached(FAR)
    assert feeds == []


async def test_no_more_than_a_window_is_handed_out_and_the_pin_is_kept(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD, hold=True) as slow, instance(await open_fabric(server), *HEARD) as standby:
        await eventually(lambda: len(slow.held) == WINDOW)
        full = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() > full + 1.5 * PIN_TIMEOUT, within=60)
        assert len(slow.held) == WINDOW
        slow.hold = False
        slow.finish()
        await slow.reached(4000)
    assert slow.handled == heard(1, 4000)
    assert (standby.handled, standby.activations) == ([], [])


async def test_whoever_takes_over_in_its_midst_goes_on_where_the_other_was(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD, hold=True) as first:
        await eventually(lambda: len(first.held) == WINDOW)
        done = first.held[:400]
        for sequence in done:
            first.consumer.done(sequence)
        first.consumer.done(first.held[500])
        await eventually(lambda: has_floor(fabric, done[-1]))
        await first.end()  # as if killed: nothing is drained
        async with instance(await open_fabric(server), *HEARD) as second:
            await second.reached(4000, within=4 * PIN_TIMEOUT)
    assert second.handled == heard(done[-1] + 1, 4000)


async def test_who_leaves_in_its_midst_hands_over_at_once_and_nothing_comes_twice(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD, hold=True) as first:
        await eventually(lambda: len(first.held) == WINDOW)
        first.finish()
        last = first.handled[-1]
        draining = asyncio.create_task(first.consumer.drain())
        await draining
    async with instance(await open_fabric(server), *HEARD) as second:
        await second.reached(4000, within=PIN_TIMEOUT)
    assert second.handled == heard(last + 1, 4000)


async def test_one_event_that_takes_long_neither_blocks_the_others_nor_is_lost(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "_LAST", 0.2)
    await write_many(fabric, names(1, 3000))
    async with instance(fabric, *HEARD, hold=True) as running:
        await eventually(lambda: len(running.held) == WINDOW)
        running.held.remove(7)
        running.hold = False
        running.finish()
        await running.reached(3000)
        await write_many(fabric, names(3001, 3100))
        await running.reached(3100)
        assert await floor(fabric) < 7
        assert running.consumer.surely_ours(7)
        running.consumer.done(7)
        await eventually(lambda: has_floor(fabric, 3100))
    assert running.handled == [number for number in heard(1, 3100) if number != 7], "each once, and the long one later"


async def test_a_restart_of_the_server_in_its_midst_loses_and_repeats_nothing(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server)
    await write_many(fabric, names(1, 6000))
    async with instance(fabric, *HEARD, hold=True) as running:
        await eventually(lambda: len(running.held) == WINDOW)
        await fresh_server.restart(gracefully=False)
        running.hold = False
        running.finish()
        await running.reached(6000, within=30)
        await eventually(lambda: has_floor(fabric, 6000))
    assert running.handled == heard(1, 6000)


async def test_a_consumer_that_is_deleted_in_its_midst_is_made_again_where_it_was(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD, hold=True) as running:
        await eventually(lambda: len(running.held) == WINDOW)
        await delete(fabric)
        running.hold = False
        running.finish()
        await running.reached(4000, within=30)
    assert running.handled == heard(1, 4000)


async def test_what_an_operator_takes_out_of_the_log_meanwhile_is_reported(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 9000))
    async with instance(fabric, *HEARD, hold=True) as running:
        await eventually(lambda: len(running.held) == WINDOW)
        first = await shorten(fabric, keep=3000)
        running.hold = False
        running.finish()
        await running.reached(9000, within=20)
        await write(fabric, "a.last")
        await running.reached(9001)
    (gap,) = running.gaps
    assert gap.first_available == first
    assert running.handled == [*heard(1, gap.after), *heard(first, 9000), 9001]
    assert gap.after < first - 1


async def test_filters_that_a_newer_version_declares_meanwhile_are_heard(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 3000))
    async with instance(fabric, *HEARD, hold=True) as older:
        await eventually(lambda: len(older.held) == WINDOW)
        await PinnedConsumer(fabric.log, spec(fabric, *HEARD, "nobody.>")).ensure()
        await write_many(fabric, names(3001, 9000))
        older.hold = False
        older.finish()
        await older.reached(9000, within=20)
    assert {*range(3001, 9001)} <= {*older.handled}
    for which in (True, False):
        of_one = [number for number in older.handled if (number % 5 == 4) is which]
        assert of_one == sorted(of_one)


async def test_without_the_permission_to_make_readers_it_takes_longer_and_that_is_all(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> NoReturn:
        raise AccessDeniedError("no", subject="$JS.API.CONSUMER.CREATE")

    monkeypatch.setattr(feeding, "backlog", denied)
    await write_many(fabric, names(1, 4000))
    async with instance(fabric, *HEARD) as running:
        await running.reached(4000)
        await eventually(lambda: has_floor(fabric, 4000))
    assert running.handled == heard(1, 4000)


async def test_an_acknowledgement_counts_again_after_it(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 4000))
    running: Instance[PinnedConsumer]
    async with instance(fabric, *HEARD) as running:
        await running.reached(4000)
        for last in (4500, 9000, 9500):
            await write_many(fabric, names(running.handled[-1] + 1, last))
            await running.reached(last)
            await eventually(partial(has_floor, fabric, last))
        assert (await info(fabric))["num_ack_pending"] == 0
    assert running.handled == heard(1, 9500)


async def test_an_instance_that_hears_by_itself_reads_what_lies_far_behind_and_goes_on_live(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 4000))
    consumer = LiveConsumer(fabric.log, spec(fabric, *HEARD))
    await consumer.ensure()
    running = Instance(consumer)
    try:
        await running.reached(4000)
        await write_many(fabric, names(4001, 4100))
        await running.reached(4100)
    finally:
        await running.end()
    assert running.handled == heard(1, 4100)
    assert running.activations == [0]
    assert await readers(fabric) == []


async def test_such_an_instance_is_told_what_was_taken_out_before_it_came_to_it(fabric: Fabric) -> None:
    await write_many(fabric, names(1, 9000))
    consumer = LiveConsumer(fabric.log, spec(fabric, *HEARD))
    await consumer.ensure()
    running = Instance(consumer)
    running.hold = True
    try:
        await eventually(lambda: len(running.held) == WINDOW)
        first = await shorten(fabric, keep=3000)
        running.hold = False
        running.finish()
        await running.reached(9000, within=20)
    finally:
        await running.end()
    # The server takes them out one after another: whoever looks meanwhile hears of the gap in parts.
    starts = [1, *(gap.first_available for gap in running.gaps)]
    stops = [*(gap.after for gap in running.gaps), 9000]
    assert starts[-1] == first
    assert running.handled == [number for part in zip(starts, stops, strict=True) for number in heard(*part)]
