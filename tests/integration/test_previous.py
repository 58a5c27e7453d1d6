"""What a key held before is right for every event, however little of it is remembered."""

import random
from collections.abc import Sequence

import pytest

from agentfield.codec import Record
from agentfield.fabric.fabric import Fabric
from agentfield.memory.previous import PreviousTable
from tests.support.events import subject, write_many


async def check(fabric: Fabric, table: PreviousTable, names: Sequence[str], floor: int, filters: Sequence[str]) -> None:
    """Walk the events after the floor and compare with the fold of all before."""
    fold = {subject(fabric, name): number for number, name in enumerate(names[:floor], 1)}
    await table.fill(floor)
    async for record in fabric.log.read(filters, start=floor + 1):
        previous = await table.of(record)
        assert (previous.sequence if previous else None) == fold.get(record.subject), record.subject
        if previous is not None:
            original = await fabric.log.at(previous.sequence)
            assert original is not None
            assert previous.payload == original.payload
        fold[record.subject] = record.sequence
        table.advance(record)


@pytest.mark.parametrize(
    ("keys", "bytes"), [(1000, 1 << 20), (5, 1 << 20), (1, 1 << 20), (1000, 3000), (1000, 0)], ids=str
)
async def test_a_table_of_any_size_answers_the_same(fabric: Fabric, keys: int, bytes: int) -> None:
    choose = random.Random(5)
    names = [f"k.{choose.randrange(25)}" for _ in range(300)]
    await write_many(fabric, names)
    for floor in (0, 1, 150, 299, 300):
        table = PreviousTable(fabric.log, [subject(fabric, "k.>")], max_keys=keys, max_bytes=bytes)
        await check(fabric, table, names, floor, [subject(fabric, "k.>")])


@pytest.mark.parametrize("keys", [10_000, 100])
async def test_more_keys_than_one_answer_holds_are_followed_too(fabric: Fabric, keys: int) -> None:
    choose = random.Random(6)
    names = [f"k.{number}" for number in range(1300)]
    names += [f"k.{choose.randrange(1400)}" for _ in range(200)]
    await write_many(fabric, names)
    filters = [subject(fabric, "k.>")]
    # From a floor in the past: what has changed since must not be taken for what was there then.
    await check(fabric, PreviousTable(fabric.log, filters, max_keys=keys), names, 1350, filters)


async def test_a_large_payload_is_not_kept_and_read_again(fabric: Fabric) -> None:
    names = ["k.1", "k.1", "k.1"]
    await write_many(fabric, names, b'"' + b"x" * 100_000 + b'"')
    table = PreviousTable(fabric.log, [subject(fabric, "k.>")])
    await check(fabric, table, names, 0, [subject(fabric, "k.>")])
    assert table._bytes < 1000


async def test_what_somebody_else_put_there_is_nothing_that_a_key_held(fabric: Fabric) -> None:
    filters = [subject(fabric, "k")]
    await fabric.connection.request(filters[0], b"not ours", timeout=5)
    table = PreviousTable(fabric.log, filters)
    await table.fill(1)
    await write_many(fabric, ["k"])
    (record,) = [record async for record in fabric.log.read(filters, start=2)]
    assert await table.of(record) is None
    table.advance(record)
    foreign = Record(filters[0], 3, 0, {}, b"not ours either")
    table.advance(foreign)
    following = await table.of(Record(filters[0], 4, 0, {}, b"1"))
    assert following is not None
    assert following.sequence == 2
